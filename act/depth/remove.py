"""What stands where a block was: a module that hands on its first argument.

The names of the other blocks stay, so a checkpoint of theirs still fits; the removed block's parameters are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from act.edits import edit_op
from act.errors import InputError


class Removed(nn.Module):
    """A removed block. `together`: how many were removed by the same edit."""

    def __init__(self, together: int = 1) -> None:
        super().__init__()
        self.together = together

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """`x`, whatever else the model passes to its blocks."""
        return x


@edit_op("remove_blocks")
def remove_blocks(model: nn.Module, layers: list[str]) -> None:
    """Put a `Removed` in place of each named block."""
    for name in layers:
        try:
            model.get_submodule(name)
        except AttributeError:
            raise InputError(f"{name}: the model has no such block") from None
        put(model, name, Removed(len(layers)))


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Make `module` the one called `name`; the mode of the model is kept."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module.train(model.training))


def removed_blocks(model: nn.Module) -> list[str]:
    """Names of the removed blocks, in the order of the model."""
    return [name for name, module in model.named_modules() if isinstance(module, Removed)]


@contextmanager
def without(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """`model` as it would be if these blocks were removed; they are put back afterwards."""
    blocks = {name: model.get_submodule(name) for name in names}
    try:
        for name in blocks:
            put(model, name, Removed())
        yield
    finally:
        for name, block in blocks.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, block)
