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
        if name in tied:
            left.append(LayerLeft(layer, "its weight is another layer's as well, so it is stored as it is"))
        elif tensors[name].dtype != torch.float32:
            left.append(LayerLeft(layer, f"its weight is {tensors[name].dtype}, not float32, so it is stored as it is"))
        else:
            layout, parts = _packed(layer, tensors, expected)
            layouts[layer] = layout
            del found[name]
            found.pop(f"{layer}.weight_mask", None)
            found |= {part: parts[key] for key, part in part_names(layer, layout).items()}
    return Packed(PackedFile(path, layouts, found, dict(metadata)), left)


def _packed(layer: str, tensors: Mapping[str, Tensor], expected: Expected) -> tuple[Layout, dict[str, Tensor]]:
    """Layout and streams of one layer's weight."""
    weight, mask = tensors[f"{layer}.weight"], tensors.get(f"{layer}.weight_mask")
    kept, group, unit = 1, 1, 1
    if mask is not None:
        weight = weight * mask
        kept, group = numbers(expected.masks[layer])
        unit = 2 if kept % 2 == 0 and group % 2 == 0 and in_pairs(mask) else 1
    bits = expected.weight_bits.get(layer, FLOAT_BITS)
    if bits != FLOAT_BITS:
        weight = weight_quantizer(tensors[scale_name(layer)], bits).codes(weight)
    layout = Layout(tuple(weight.shape), bits, kept, group, unit, expected.group_sizes.get(layer, 0))
    try:
        return layout, pack_weight(weight, layout, mask)
    except ValueError as error:
        raise InputError(f"{layer}: cannot be stored as {layout.label()}: {error}") from error
