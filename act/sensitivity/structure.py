"""Structured pruning as a treatment: a share of one MLP's hidden units, or whole heads, without effect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from act.selection import select_layers
from act.sensitivity.treatments import Prepared, Unit, changed
from act.strategies.base import LayerLeft
from act.structure.axes import HEADS, HIDDEN, K, Q, V, find_tensor
from act.structure.importance import unit_scores
from act.structure.shrink import masked_tensors
from act.structure.statistics import GroupStatistics
from act.structure.units import AttentionUnits, Found, Group, find_units


class Structure:
    """Takes the smallest `share` of the hidden units of an MLP, or of the heads of an attention, at least one.

    The size of a unit is the norm of all its weights. It is taken out by zeros wherever it lies, which is what its
    removal computes. `input_size`: channels, height, width.
    """

    def __init__(self, share: float, input_size: tuple[int, int, int]) -> None:
        self.share, self.input_size = share, input_size

    @property
    def name(self) -> str:
        return f"structure {100 * self.share:g} %"

    def prepare(self, model: nn.Module) -> Prepared:
        units = find_units(model)
        plan = select_layers(model, self.input_size, ["*"], [])
        found = Prepared([], list(units.left))
        for group in units.groups:
            inside = tuple(name for name in plan.done if name.startswith(f"{group.name}."))
            if reason := _reason(group):
                found.left += [LayerLeft(name, reason) for name in inside]
            else:
                found.units.append(self._unit(model, units, group, inside))
        seen = {layer for unit in found.units for layer in unit.layers} | {layer.name for layer in found.left}
        rest = [LayerLeft(name, "makes or reads no heads or MLP units") for name in plan.done]
        found.left += [layer for layer in (*rest, *plan.left) if layer.name not in seen]
        return found

    def _unit(self, model: nn.Module, units: Found, group: Group, inside: tuple[str, ...]) -> Unit:
        heads = isinstance(group, AttentionUnits)
        scores = unit_scores(model, group, GroupStatistics(), "magnitude")[HEADS if heads else HIDDEN]
        total = len(scores)
        count = min(max(1, round(self.share * total)), total - 1)
        kept = scores.argsort(stable=True)[count:].sort().values
        tensors = masked_tensors(model, units, {group.name: _segments(group, kept)})
        what, kind = ("heads", "heads") if heads else ("hidden units", "mlp")
        return Unit(group.name, inside, partial(_set, model, tensors), kind, f"{count} of {total} {what}")


def _reason(group: Group) -> str | None:
    if isinstance(group, AttentionUnits):
        return group.heads_reason or ("it has one head only" if group.heads < 2 else None)
    return "it has one hidden unit only" if group.hidden < 2 else None


def _segments(group: Group, kept: Tensor) -> dict[str, Tensor]:
    """The entries of every segment that belong to the kept heads or hidden units."""
    if not isinstance(group, AttentionUnits):
        return {HIDDEN: kept}

    def of(size: int) -> Tensor:
        return (kept.unsqueeze(1) * size + torch.arange(size)).flatten()

    return {Q: of(group.qk_dim), K: of(group.qk_dim), V: of(group.v_dim), HEADS: kept}


@contextmanager
def _set(model: nn.Module, tensors: dict[str, Tensor]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, value in tensors.items():
            stack.enter_context(changed(find_tensor(model, name), value.detach()))
        yield
