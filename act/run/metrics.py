"""The figures a run is judged by, on torch models and on exported files alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from act.errors import ActError, InputError
from act.run.evaluate import Predictions, evaluate

if TYPE_CHECKING:
    from act.data.bundle import DataBundle
    from act.recipe.schema import TrainConfig
    from act.run.baseline import Baseline

Callback = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Scorer:
    """Scores on the validation set and by the caller's own metric, both optional.

    `name` is what the caller's metric is called in the report.
    """

    data: DataBundle | None
    batch_size: int
    callback: Callback | None = None
    name: str = "metric"

    @property
    def has_val(self) -> bool:
        return self.data is not None and self.data.has_val

    def figures(self, model: nn.Module, baseline: Baseline) -> dict[str, float]:
        """`top1` and `agreement` with the original in percent, and the caller's metric, as far as there are any."""
        return self.scored(model, baseline)[0]

    def scored(self, model: nn.Module, baseline: Baseline) -> tuple[dict[str, float], Predictions | None]:
        """`figures`, and the predictions int64 [images] they come from."""
        found: dict[str, float] = {}
        predictions = None
        if self.data is not None and self.data.has_val:
            result = evaluate(model, self.data.val(self.batch_size), baseline.predictions)
            check_order(result, baseline.figures)
            found = {name: round(result[name], 4) for name in ("top1", "agreement") if name in result}
            predictions = result["predictions"]
        if self.callback is not None:
            found[self.name] = self.own(model)
        return found, predictions

    def own(self, model: nn.Module) -> float:
        """The caller's metric of `model`, run in eval mode without gradients."""
        assert self.callback is not None
        training = model.training
        try:
            with torch.no_grad():
                value = self.callback(model.eval())
        finally:
            model.train(training)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise InputError(
                f"eval_callback: returned {type(value).__name__}; it must return one number, the metric"
            ) from None
        if not math.isfinite(number):
            raise InputError(f"eval_callback: returned {number}; it must return a finite number, the metric")
        return number

    def main_metric(self, cfg: TrainConfig) -> str:
        """The figure that goals go by: the caller's, else TrainConfig.metric, else top1, else agreement."""
        if self.callback is not None:
            return self.name
        if cfg.metric is not None:
            return cfg.metric
        return "top1" if self.data is not None and self.data.val_labelled else "agreement"

    def metric(self, cfg: TrainConfig, baseline: Baseline) -> Callback | None:
        """`main_metric` as a function of a model, None when there is nothing to measure it on."""
        if self.callback is not None:
            return self.own
        if not self.has_val:
            return None
        name = self.main_metric(cfg)
        return lambda model: self.figures(model, baseline)[name]


def check_order(result: dict[str, Any], figures: dict[str, Any]) -> None:
    """ActError when a pass over the validation set saw other images, or another order, than the original's."""
    if result["order"] != figures["order"]:
        raise ActError(
            "data.val: gave other images, or another order, than when the original was scored, so predictions cannot "
            "be compared; use a loader that does not shuffle or augment"
        )


class ExportedModule(nn.Module):
    """A runtime session as a module, so that a caller's metric can score the exported file itself."""

    def __init__(self, predict: Callable[[Any], Any]) -> None:
        super().__init__()
        self.predict = predict

    def forward(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.predict(images.detach().float().numpy(force=True)))
