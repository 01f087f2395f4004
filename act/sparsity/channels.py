"""Groups of channels of a vision transformer that may be reordered without changing what the model computes.

Three kinds: the hidden units of an MLP, the value channels within each attention head, and the residual stream of a
model whose width never changes. They are found by structure, and each is proved on a copy of the model before it is
used: what this file does not understand then shows as another output.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

from act.models import logits
from act.structure.units import mlp_sequence

HIDDEN, VALUE, RESIDUAL = "hidden", "value", "residual"
_TOLERANCE = 1e-3  # of the spread of the logits, in float32; a channel out of place costs 1e-2 and more


@dataclass(frozen=True)
class Segment:
    """`size` consecutive entries of a tensor along `axis`, from `start`."""

    tensor: str
    axis: int
    start: int = 0


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that move together: one order of `size` channels for all `segments`.

    They stay within their `block` consecutive ones (a head). `readers` are the layers that take them as inputs along K.
    """

    name: str
    kind: str
    size: int
    block: int
    segments: tuple[Segment, ...]
    readers: tuple[str, ...]


def find_groups(model: nn.Module) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Every candidate, and where there is none the reason by name. A candidate is not proved yet."""
    groups: list[ChannelGroup] = []
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():
        found: ChannelGroup | str | None = _hidden(name, module) or _value(name, module)
        if isinstance(found, str):
            reasons[name] = found
        elif found is not None:
            groups.append(found)
    stream = _residual(model, groups)
    if isinstance(stream, str):
        reasons["residual stream"] = stream
    else:
        groups.append(stream)
    return groups, reasons


def apply_order(tensors: dict[str, Tensor], segments: Iterable[Segment], order: Tensor) -> None:
    """Reorder the segments of the named tensors in place: what was at `order[i]` is then at `i`."""
    for segment in segments:
        part = tensors[segment.tensor].data.narrow(segment.axis, segment.start, len(order))
        part.copy_(part.index_select(segment.axis, order.to(part.device)))


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def prove(model: nn.Module, groups: list[ChannelGroup], image: Tensor) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The groups that may really be reordered, and the others with the reason; `model` is left as it is.

    A copy gets noise on every tensor, since zeros (fresh heads, small LayerScales) hide mistakes, and random orders.
    `image` is [B, C, H, W].
    """
    generator = torch.Generator().manual_seed(0)
    trial = copy.deepcopy(model).eval()
    tensors = named_tensors(trial)
    for tensor in tensors.values():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator).to(tensor)
            tensor.data.add_(noise, alpha=0.1 if tensor.dim() == 1 else 0.02)
    with torch.no_grad():
        expected = logits(trial(image))
        failed = _failing(trial, tensors, groups, image, expected, generator)
    why = "reordering them changes the output: something else depends on their order"
    return [group for group in groups if group not in failed], {
        group.name: f"{group.kind} channels: {why}" for group in failed
    }


def _failing(
    trial: nn.Module,
    tensors: dict[str, Tensor],
    groups: list[ChannelGroup],
    image: Tensor,
    expected: Tensor,
    generator: torch.Generator,
) -> list[ChannelGroup]:
    """The groups whose reordering changes the output, by halving; each reordering is undone."""
    if not groups:
        return []
    orders = [_random_order(group, generator) for group in groups]
    for group, order in zip(groups, orders, strict=True):
        apply_order(tensors, group.segments, order)
    difference = (logits(trial(image)) - expected).abs().max()
    for group, order in zip(reversed(groups), reversed(orders), strict=True):
        apply_order(tensors, group.segments, order.argsort())
    if bool(difference <= _TOLERANCE * expected.std()):
        return []
    if len(groups) == 1:
        return groups
    half = len(groups) // 2
    parts = (groups[:half], groups[half:])
    return [bad for part in parts for bad in _failing(trial, tensors, part, image, expected, generator)]


def _random_order(group: ChannelGroup, generator: torch.Generator) -> Tensor:
    starts = range(0, group.size, group.block)
    return torch.cat([start + torch.randperm(group.block, generator=generator) for start in starts])


def _hidden(name: str, module: nn.Module) -> ChannelGroup | None:
    """The hidden units of a module with fc1 (or a gated pair of layers) and fc2: rows of all before, columns of fc2.

    Or of a sequence of two layers.
    """
    if (layers := mlp_sequence(module)) is not None:
        first, last = (_join(name, layer) for layer in layers)
        writer = module.get_submodule(layers[0])
        rows = [Segment(f"{first}.{leaf}", 0) for leaf in ("weight", "bias") if getattr(writer, leaf) is not None]
        size = len(writer.get_parameter("weight"))
        return ChannelGroup(name, HIDDEN, size, size, (Segment(f"{last}.weight", 1), *rows), (last,))
    fc2 = getattr(module, "fc2", None)
    if not _is_product(fc2) or not any(hasattr(module, first) for first in ("fc1", "fc1_g")):
        return None
    size = fc2.weight.shape[1]
    segments = [Segment(_join(name, "fc2.weight"), 1)]
    for own, tensor in named_tensors(module).items():
        if own.startswith("fc2.") or not tensor.is_floating_point() or not tensor.dim():
            continue
        if tensor.shape[0] in (size, 2 * size):  # twice: a gate and a value, one after the other
            segments += [Segment(_join(name, own), 0, start) for start in range(0, tensor.shape[0], size)]
        elif tensor.shape[-1] == size:
            segments.append(Segment(_join(name, own), tensor.dim() - 1))
    return ChannelGroup(name, HIDDEN, size, size, tuple(segments), (_join(name, "fc2"),))


def _value(name: str, module: nn.Module) -> ChannelGroup | str | None:
    """The value channels of an attention module with heads and proj: the last rows of qkv, kv or v, columns of proj."""
    proj, heads = getattr(module, "proj", None), getattr(module, "num_heads", None)
    source = next((own for own in ("qkv", "kv", "v", "v_proj") if _is_product(getattr(module, own, None))), None)
    if not _is_product(proj) or not isinstance(heads, int) or source is None:
        return None
    size = proj.weight.shape[1]
    rows = module.get_submodule(source).get_parameter("weight").shape[0]
    if size % heads or rows != size * {"qkv": 3, "kv": 2}.get(source, 1):
        return f"value channels: {rows} rows of {source} and {size} columns of proj are no layout known here"
    segments = [Segment(_join(name, "proj.weight"), 1), Segment(_join(name, f"{source}.weight"), 0, rows - size)]
    # A norm beside a reduction or an MLP (PVT, attention pooling) is none of the values.
    norm = () if hasattr(module, "sr") or hasattr(module, "mlp") else ("norm.weight", "norm.bias")
    for own, tensor in named_tensors(module).items():
        if own == f"{source}.bias":
            segments.append(Segment(_join(name, own), 0, rows - size))
        elif own in ("v_bias", "gate.weight", "gate.bias", *norm) and len(tensor) == size:
            segments.append(Segment(_join(name, own), 0))
    return ChannelGroup(name, VALUE, size, size // heads, tuple(segments), (_join(name, "proj"),))


def _residual(model: nn.Module, others: list[ChannelGroup]) -> ChannelGroup | str:
    """The residual stream of a model of one width: every tensor with an axis along it."""
    size = getattr(model, "embed_dim", None)
    if not isinstance(size, int) or getattr(model, "num_features", None) != size:
        return "the stream has no single width (embed_dim) throughout the model"
    taken = {segment.tensor for group in others for segment in group.segments if segment.axis == 0}
    writers = {reader for group in others for reader in group.readers}
    segments: list[Segment] = []
    readers: list[str] = []
    for name, module in model.named_modules():
        if _is_product(module):
            if name not in writers and module.weight.shape[1] == size:
                segments.append(Segment(f"{name}.weight", 1))
                readers.append(name)
            elif module.weight.shape[0] == size:
                segments += [Segment(_join(name, own), 0) for own in named_tensors(module) if own in ("weight", "bias")]
        else:
            direct = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            segments += list(_last_axes(name, direct, size, taken))
    return ChannelGroup("residual stream", RESIDUAL, size, size, tuple(segments), tuple(readers))


def _last_axes(name: str, tensors: list[tuple[str, Tensor]], size: int, taken: set[str]) -> Iterator[Segment]:
    for own, tensor in tensors:
        full = _join(name, own)
        if own in ("q_bias", "k_bias", "v_bias"):  # of the heads, though as long as the stream is wide
            continue
        if full not in taken and tensor.is_floating_point() and tensor.dim() and tensor.shape[-1] == size:
            yield Segment(full, tensor.dim() - 1)


def _is_product(module: object) -> TypeGuard[nn.Linear | nn.Conv2d]:
    return isinstance(module, nn.Linear | nn.Conv2d)


def _join(name: str, own: str) -> str:
    return f"{name}.{own}" if name else own
