"""Axes of tensors that must shrink together, and shrinking them.

A unit (a head, a dimension of a head, a hidden unit of an MLP) lives in several tensors at once: rows of one weight,
columns of another, entries of biases and tables. An `Axis` names one of these places and the segments along it, in
order: the joint projection of an attention has the segments q, k, v along its output; the projection behind it v.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Q, K, V, HEADS, HIDDEN = "q", "k", "v", "heads", "hidden"


@dataclass(frozen=True)
class Axis:
    """Dimension `dim` of the parameter or buffer called `tensor` (full name) holds `segments` one after the other."""

    tensor: str
    dim: int
    segments: tuple[str, ...]


def find_tensor(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of that full name."""
    owner, _, leaf = name.rpartition(".")
    tensor: Any = getattr(model.get_submodule(owner), leaf)
    assert isinstance(tensor, Tensor)
    return tensor


def selected(tensor: Tensor, axis: Axis, sizes: Mapping[str, int], maps: Mapping[str, Tensor]) -> Tensor:
    """`tensor` with the segments of `axis` changed by `maps`; segments not in it stay.

    `sizes` are the present lengths of the segments. A map is a list of indices to keep (int64 [new]), or a matrix
    [new, old] that the segment is multiplied by.
    """
    parts = torch.split(tensor, [sizes[segment] for segment in axis.segments], axis.dim)
    return torch.cat([_mapped(p, axis.dim, maps.get(s)) for p, s in zip(parts, axis.segments, strict=True)], axis.dim)


def _mapped(part: Tensor, dim: int, change: Tensor | None) -> Tensor:
    if change is None:
        return part
    if change.dim() == 1:
        return part.index_select(dim, change)
    return torch.movedim(torch.tensordot(change.to(part), part, dims=([1], [dim])), 0, dim)


def resize(model: nn.Module, axes: Sequence[Axis], before: Mapping[str, int], after: Mapping[str, int]) -> None:
    """Cut every axis to the lengths in `after`, keeping the first entries of each segment; the values do not matter
    where they are loaded afterwards. Sizes that layers keep as attributes follow."""
    maps = {segment: torch.arange(size) for segment, size in after.items()}
    for axis in axes:
        owner, _, leaf = axis.tensor.rpartition(".")
        module = model.get_submodule(owner)
        old = find_tensor(model, axis.tensor)
        new = selected(old.detach(), axis, before, {key: value.to(old.device) for key, value in maps.items()})
        if isinstance(old, nn.Parameter):
            setattr(module, leaf, nn.Parameter(new.contiguous(), requires_grad=old.requires_grad))
        else:
            setattr(module, leaf, new.contiguous())
        follow(module)


def follow(module: nn.Module) -> None:
    """Make the sizes that a layer keeps as attributes those of its weight."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Conv2d):
        if module.groups > 1 and module.groups == module.in_channels:  # depthwise: a filter per channel
            module.groups = module.in_channels = module.out_channels = len(module.weight)
        else:
            module.out_channels, module.in_channels = module.weight.shape[:2]
    elif isinstance(module, nn.LayerNorm) and isinstance(weight, Tensor):
        module.normalized_shape = tuple(weight.shape)
