"""The edit that makes attention modules and MLPs smaller, and the tensors that go into what is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from act.edits import edit_op
from act.errors import InputError
from act.structure.attention.base import ShrunkAttention
from act.structure.axes import HEADS, HIDDEN, Axis, K, Q, V, find_tensor, resize, selected
from act.structure.units import AttentionUnits, Found, MlpUnits, find_units

Sizes = Mapping[str, Mapping[str, int]]


@edit_op("shrink")
def shrink(model: nn.Module, attention: Sizes, mlp: Mapping[str, int]) -> None:
    """Cut the named modules to sizes: attention to `heads`, `qk` and `v` (dimensions per head), MLPs to hidden units.

    Which units stay is a matter of the tensors, which are loaded or copied afterwards.
    """
    found = find_units(model)
    known = {group.name: group for group in found.groups}
    for name, sizes in attention.items():
        group = known.get(name)
        if not isinstance(group, AttentionUnits):
            raise InputError(f"arch.json: {name} is no attention module that can be cut")
        _cut_attention(model, group, int(sizes["heads"]), int(sizes["qk"]), int(sizes["v"]))
    for name, hidden in mlp.items():
        group = known.get(name)
        if not isinstance(group, MlpUnits):
            raise InputError(f"arch.json: {name} is no MLP that can be cut")
        _check(name, (hidden, group.hidden))
        resize(model, group.axes, group.sizes(), {HIDDEN: int(hidden)})


def shrink_edit(sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The edit that cuts the named groups to sizes: (hidden,), or (heads, dimensions of q and k, dimensions of v)."""
    attention = {n: {"heads": s[0], "qk": s[1], "v": s[2]} for n, s in sizes.items() if len(s) == 3}
    return {"op": "shrink", "attention": attention, "mlp": {n: s[0] for n, s in sizes.items() if len(s) == 1}}


def _check(name: str, *pairs: tuple[int, int]) -> None:
    if any(not 0 < new <= old for new, old in pairs):
        raise InputError(f"arch.json: {name} cannot have {pairs[0][0]} of {pairs[0][1]} units")


def free_of_width(model: nn.Module) -> None:
    """Let every attention compute its sizes from its heads: some families take the width of their input for them."""
    for group in find_units(model).groups:
        if isinstance(group, AttentionUnits):
            _cut_attention(model, group, group.heads, group.qk_dim, group.v_dim)


def _cut_attention(model: nn.Module, group: AttentionUnits, heads: int, qk_dim: int, v_dim: int) -> None:
    _check(group.name, (heads, group.heads), (qk_dim, group.qk_dim), (v_dim, group.v_dim))
    after = {Q: heads * qk_dim, K: heads * qk_dim, V: heads * v_dim, HEADS: heads}
    resize(model, group.axes, group.sizes(), after)
    module: Any = model.get_submodule(group.name)
    for key, value in group.view.attributes(heads, qk_dim, v_dim).items():
        setattr(module, key, value)
    module.qk_dim, module.v_dim = qk_dim, v_dim
    if not isinstance(module, ShrunkAttention):
        kind = type(module)
        # The module stays what it is for other code; only its forward learns of the new sizes.
        module.__class__ = type(f"Shrunk{kind.__name__}", (group.view.mixin, kind), {})


Maps = dict[str, dict[str, Tensor]]  # group -> segment -> indices to keep, or a matrix; see `selected`


@torch.no_grad()
def shrunk_tensors(model: nn.Module, found: Found, maps: Maps) -> dict[str, Tensor]:
    """The values of the tensors that `maps` changes, by full name; `model` stays as it is."""
    tensors: dict[str, Tensor] = {}
    for name, changes in maps.items():
        group = found.group(name)
        for axis in group.axes:
            before = tensors.get(axis.tensor, find_tensor(model, axis.tensor))
            tensors[axis.tensor] = selected(before, axis, group.sizes(), changes).contiguous()
    return tensors


def masked_tensors(model: nn.Module, found: Found, maps: Maps) -> dict[str, Tensor]:
    """The same tensors at full size, with zeros where units are not kept: what removal must be equal to."""
    tensors: dict[str, Tensor] = {}
    for name, kept in maps.items():
        group = found.group(name)
        sizes = group.sizes()
        for axis in group.axes:
            before = tensors.get(axis.tensor, find_tensor(model, axis.tensor))
            tensors[axis.tensor] = before * _mask(before, axis, sizes, kept)
    return tensors


def _mask(tensor: Tensor, axis: Axis, sizes: Mapping[str, int], kept: Mapping[str, Tensor]) -> Tensor:
    parts = []
    for segment in axis.segments:
        part = torch.ones(sizes[segment]) if segment not in kept else torch.zeros(sizes[segment])
        parts.append(part if segment not in kept else part.index_fill(0, kept[segment], 1.0))
    shape = [1] * tensor.dim()
    shape[axis.dim] = -1
    return torch.cat(parts).to(tensor).view(shape)


def set_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy values into the parameters and buffers of those names."""
    with torch.no_grad():
        for name, value in tensors.items():
            find_tensor(model, name).copy_(value)
