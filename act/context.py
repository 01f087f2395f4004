"""What a stage needs besides the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from act.edits import apply_edit

if TYPE_CHECKING:
    from act.data.bundle import DataBundle
    from act.recipe.schema import Recipe


class Log(Protocol):
    """The run's event log: one JSON object per call in events.jsonl, one line on the terminal if `message`."""

    def __call__(self, event: str, message: str = "", **fields: Any) -> None: ...


def _silent(event: str, message: str = "", **fields: Any) -> None:
    return None


@dataclass
class Context:
    """Passed to strategies. `edits` is the record from which the compressed model can be rebuilt."""

    recipe: Recipe
    input_size: tuple[int, int, int]  # channels, height, width
    data: DataBundle | None = None  # None while planning
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    log: Log = _silent
    edits: list[dict[str, Any]] = field(default_factory=list)

    def edit(self, model: nn.Module, edit: dict[str, Any]) -> None:
        """Apply a structural edit to `model` and record it. `edit` is plain JSON with an `op`."""
        apply_edit(model, edit)
        self.edits.append(edit)
