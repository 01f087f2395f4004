"""One forward pass to its loss terms, as a module."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from act.strategies.base import Objective
from act.train.laps import FORWARD, LOSSES


class LossTerms(nn.Module):
    """The model and its objectives in one forward: images and labels in, scalar loss terms by name out.

    It is this module that is wrapped for several processes: parameters of the objectives are then averaged with the
    model's, and outputs captured by hooks count as used. `lap` is told when the forward and the losses are done.
    """

    def __init__(
        self, model: nn.Module, objectives: Sequence[Objective], lap: Callable[[str], None] = lambda part: None
    ) -> None:
        super().__init__()
        self.lap = lap
        self.model = model
        self.objectives = list(objectives)
        self.extra = nn.ParameterList(parameter for objective in objectives for parameter in objective.parameters())

    def forward(self, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """`images` [B, C, H, W], `labels` [B] or None. Terms of equal name from two objectives are added."""
        output = self.model(images)
        self.lap(FORWARD)
        terms: dict[str, Tensor] = {}
        for objective in self.objectives:
            for name, value in objective.losses(images, labels, output).items():
                terms[name] = terms[name] + value if name in terms else value
        self.lap(LOSSES)
        return terms
