"""The check that every run makes on the file it ships, in the runtime that will execute it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from act.backends import Session
from act.backends.census import Census, census
from act.backends.onnxruntime import OnnxRuntime
from act.errors import ExportError
from act.layers import compressed_layers
from act.run.evaluate import evaluate
from act.run.metrics import ExportedModule
from act.verify.parity import torch_logits

if TYPE_CHECKING:
    from act.data.batch import Batch

SAMPLE = 64  # images compared with torch number by number


@dataclass(frozen=True)
class Comparison:
    """`agreement` in percent and `max_abs_diff` of the logits, both against the torch model."""

    agreement: float
    max_abs_diff: float
    images: int

    def figures(self) -> dict[str, Any]:
        """The report's entries."""
        return {"agreement_torch": round(self.agreement, 4), "max_abs_diff": self.max_abs_diff}


@dataclass(frozen=True)
class ArtifactCheck(Comparison):
    """A comparison, and what ONNX Runtime makes of the file."""

    census: Census

    def figures(self) -> dict[str, Any]:
        """The report's entries."""
        return {
            **super().figures(),
            "integer_products": self.census.integer,
            "float_products": self.census.float,
            "float_nodes": list(self.census.float_nodes),
        }


def score(session: Session, batches: Iterable[Batch]) -> dict[str, Any]:
    """`predictions` int64 [images], `images`, and `top1` in percent when there are labels, by an opened file."""
    return evaluate(ExportedModule(session.run), batches)


def check_artifact(
    path: str | Path,
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    agreement: float | None = None,
    min_agreement: float = 99.0,
    max_abs_diff: float | None = None,
    threads: int = 0,
) -> ArtifactCheck:
    """Open the exported file `path` in ONNX Runtime, count its integer products and `compare` it with `model`.

    ExportError if the model has quantised products and none of them runs on integers, or a limit is broken.
    """
    counted = census(path)
    if runs_on_integers(model) and not counted.integer:
        raise ExportError(
            f"{path}: none of its {counted.float} products runs on integers in ONNX Runtime, though layers are "
            "quantised; the file would be smaller but not faster"
        )
    found = compare(
        path,
        OnnxRuntime().load(path, threads),
        model,
        batches,
        agreement=agreement,
        min_agreement=min_agreement,
        max_abs_diff=max_abs_diff,
    )
    return ArtifactCheck(found.agreement, found.max_abs_diff, found.images, counted)


def compare(
    path: str | Path,
    session: Session,
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    agreement: float | None = None,
    min_agreement: float = 99.0,
    max_abs_diff: float | None = None,
) -> Comparison:
    """Compare the file `path`, opened as `session`, with `model`, from which it was exported.

    The first `SAMPLE` images of `batches` go through both. `agreement` is that of the predictions on the whole
    validation set where it is known already; otherwise the sample's is judged. `max_abs_diff` None sets no limit.
    ExportError if a limit is broken.
    """
    training = model.training
    model.eval()
    largest, same, images = 0.0, 0, 0
    try:
        for chunk in _sample(batches):
            ours, theirs = session.run(chunk), torch_logits(model, chunk)
            largest = float(np.maximum(largest, np.abs(ours - theirs).max()))  # max() would pass over a NaN
            same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
            images += len(chunk)
    finally:
        model.train(training)
    if not images:
        raise ExportError(f"{path}: cannot be compared with the torch model: there are no images")
    if agreement is None:
        agreement = 100 * same / images
        # One flipped prediction is within the luck of a small sample, whatever the percentage says.
        min_agreement = min(min_agreement, 100 * (images - 1) / images)
    found = Comparison(agreement, largest, images)
    _judge(path, found, min_agreement, max_abs_diff)
    return found


def runs_on_integers(model: nn.Module) -> bool:
    """Whether an export of `model` must contain integer products: a linear layer whose two quantisers are at work."""
    return any(
        isinstance(layer, nn.Linear)
        and all(q is not None and q.enabled for q in (layer.weight_quantizer, layer.input_quantizer))
        for _, layer in compressed_layers(model)
    )


def _sample(batches: Iterable[Batch]) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
    left = SAMPLE
    for batch in batches:
        images = batch.images[:left].float().numpy(force=True)
        yield images
        left -= len(images)
        if left <= 0:
            return


def _judge(path: str | Path, found: Comparison, min_agreement: float, max_abs_diff: float | None) -> None:
    if found.agreement < min_agreement:
        raise ExportError(
            f"{path}: agrees with the torch model on {found.agreement:.2f} % of the images; "
            f"allowed are {min_agreement:.2f} (export.min_agreement)"
        )
    if not np.isfinite(found.max_abs_diff) or (max_abs_diff is not None and found.max_abs_diff > max_abs_diff):
        raise ExportError(
            f"{path}: its logits differ from the torch model's by up to {found.max_abs_diff:.4g}; "
            f"export.max_abs_diff is {max_abs_diff}"
        )
