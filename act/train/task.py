"""The task's own loss, for models that are trained on labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from act.errors import InputError
from act.models import logits
from act.strategies.base import Objective


class TaskLoss(Objective):
    """Cross-entropy of the class logits [B, classes] with the labels [B], averaged over the batch, in float32.

    A distilled model that returns (class logits, distillation logits) while it trains has its class head trained on
    the labels, as in DeiT (arXiv 2012.12877).
    """

    def __init__(self, weight: float = 1.0, label_smoothing: float = 0.0) -> None:
        self.weight = weight
        self.label_smoothing = label_smoothing

    def losses(self, images: Tensor, labels: Tensor | None, output: Tensor) -> dict[str, Tensor]:
        """`{"task": loss}`; InputError when the batch has no labels."""
        if labels is None:
            raise InputError(
                "data.train: training on the task's loss needs labels and these images have none; "
                "add a Distillation section (it needs no labels) or give labelled images"
            )
        scores = output[0] if isinstance(output, tuple | list) else logits(output)
        with torch.autocast(scores.device.type, enabled=False):
            loss = F.cross_entropy(scores.float(), labels, label_smoothing=self.label_smoothing)
        return {"task": self.weight * loss}
