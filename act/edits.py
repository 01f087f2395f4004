"""Edits: the only way to change a model's structure.

A compressed model is its base model, a list of edits (plain JSON, `arch.json`) and its tensors
(`model.safetensors`). Applying the list to a fresh base model and loading the tensors rebuilds it bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from act.errors import InputError

Edit = Callable[..., None]
_EDITS: dict[str, Edit] = {}


def edit_op(name: str) -> Callable[[Edit], Edit]:
    """Register a function `(model, **fields) -> None` as the edit `op: name`."""

    def register(function: Edit) -> Edit:
        _EDITS[name] = function
        return function

    return register


def apply_edit(model: nn.Module, edit: dict[str, Any]) -> None:
    """Apply one recorded edit to `model` in place; InputError for an unknown op."""
    import act.depth.remove
    import act.layers
    import act.quant.matmul
    import act.sparsity.reorder
    import act.structure.shrink
    import act.structure.width
    import act.tokens.blocks  # noqa: F401  registering their edits

    op = edit.get("op")
    if op not in _EDITS:
        from act.strategies.base import load_strategies

        load_strategies()  # an edit may stand in its strategy's own file
    if op not in _EDITS:
        raise InputError(f"arch.json: op {op!r} is unknown; known: {', '.join(sorted(_EDITS))}")
    _EDITS[op](model, **{key: value for key, value in edit.items() if key != "op"})


def apply_edits(model: nn.Module, edits: Iterable[dict[str, Any]]) -> nn.Module:
    """Apply recorded edits in order and return the same model."""
    for edit in edits:
        apply_edit(model, edit)
    return model
