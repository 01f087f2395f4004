"""From a compressed model's tensors and edits to the content of a packed file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from act.errors import InputError
from act.quant.fake_quant import weight_quantizer
from act.storage.codec import in_pairs, pack_weight
from act.storage.file import PackedFile, part_names, scale_name
from act.storage.layout import FLOAT_BITS, Layout, numbers
from act.strategies.base import LayerLeft
from act.verify.match import Expected


@dataclass(frozen=True)
class Packed:
    """The content of a packed file, and the compressed layers whose weight is stored as it is, with the reason."""

    file: PackedFile
    left: list[LayerLeft]


def pack_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    edits: list[dict[str, Any]],
    shared: Mapping[str, str],
    metadata: Mapping[str, str],
) -> Packed:
    """Pack the weight of every layer that `edits` quantise or prune; `tensors` are the model's state, float32.

    `shared` maps further names of a tensor to the one it is stored under. A mask that keeps both of every two
    neighbours is stored in pairs, which takes fewer indices. InputError if the tensors do not fit the edits.
    """
    expected = Expected.from_edits(edits)
    tied = {*shared, *shared.values()}
    layouts: dict[str, Layout] = {}
    left: list[LayerLeft] = []
    found = dict(tensors)
    for layer in dict.fromkeys([*expected.weight_bits, *expected.masks]):
        name = f"{layer}.weight"
        missing = [key for key in _needed(layer, expected) if key not in tensors and key not in shared]
        if missing:
            raise InputError(f"{missing[0]}: not among the model's tensors, though its edits name the layer")
        if name in tied:
            left.append(LayerLeft(layer, "its weight is another layer's as well, so it is stored as it is"))
            continue
        layout = _layout(layer, tensors, expected)
        reason = layout.problem() if tensors[name].dtype == torch.float32 else f"{tensors[name].dtype}, not float32"
        if reason is not None:
            left.append(LayerLeft(layer, f"its weight is stored as it is: {reason}"))
            continue
        parts = _streams(layer, layout, tensors)
        layouts[layer] = layout
        del found[name]
        found.pop(f"{layer}.weight_mask", None)
        found |= {part: parts[key] for key, part in part_names(layer, layout).items()}
    return Packed(PackedFile(path, layouts, found, dict(metadata)), left)


def _needed(layer: str, expected: Expected) -> list[str]:
    """The tensors that a compressed layer must have."""
    more = [scale_name(layer)] if layer in expected.weight_bits else []
    return [f"{layer}.weight", *more, *([f"{layer}.weight_mask"] if layer in expected.masks else [])]


def _layout(layer: str, tensors: Mapping[str, Tensor], expected: Expected) -> Layout:
    """How the layer's weight is to be stored."""
    kept, group, unit = 1, 1, 1
    if layer in expected.masks:
        kept, group = numbers(expected.masks[layer])
        even = kept % 2 == 0 and group % 2 == 0
        unit = 2 if even and in_pairs(tensors[f"{layer}.weight_mask"]) else 1
    bits, size = expected.weight_bits.get(layer, FLOAT_BITS), expected.group_sizes.get(layer, 0)
    return Layout(tuple(tensors[f"{layer}.weight"].shape), bits, kept, group, unit, size)


def _streams(layer: str, layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The packed weight of one layer."""
    weight, mask = tensors[f"{layer}.weight"], None
    if not layout.dense:
        mask = tensors[f"{layer}.weight_mask"]
        weight = weight * mask
    if layout.bits != FLOAT_BITS:
        weight = weight_quantizer(tensors[scale_name(layer)], layout.bits).codes(weight)
    try:
        return pack_weight(weight, layout, mask)
    except ValueError as error:
        raise InputError(f"{layer}: cannot be stored as {layout.label()}: {error}") from error
