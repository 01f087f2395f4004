"""The two heads of a model with a distillation token."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from act.distill.capture import Capture
from act.models import logits


def distilled_training(model: nn.Module, enable: bool | None = None) -> bool | None:
    """Whether the model gives (class, distillation) logits while training; None for one without such a token.

    With `enable` it is switched (timm's `set_distilled_training`); in eval mode the model gives their mean either way.
    """
    switch: Any = getattr(model, "set_distilled_training", None)
    if not callable(switch) or not isinstance(getattr(model, "head_dist", None), nn.Module):
        return None
    if enable is not None:
        switch(enable)
    return bool(getattr(model, "distilled_training", False))


class Heads:
    """Reads a teacher's logits head by head, though in eval mode its output is their mean."""

    def __init__(self, model: nn.Module) -> None:
        two = distilled_training(model) is not None
        self._capture = Capture(model, ["head", "head_dist"]) if two else None

    def take(self, output: Any) -> list[Tensor]:
        """[logits], or [class logits, distillation logits], of the forward pass that gave `output`."""
        if self._capture is None:
            return [logits(output)]
        found = self._capture.take()
        return [found["head"], found["head_dist"]]

    def close(self) -> None:
        if self._capture is not None:
            self._capture.close()
