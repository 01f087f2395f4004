"""Where the bytes of a packed file go, beside the same tensors in float32."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from act.folding import number_of
from act.rebuild import unique_tensors
from act.storage.file import PACKED_FILE, PackedFile, part_names, scale_name
from act.storage.layout import Layout
from act.storage.pack import pack_tensors

_ADDED = ("input_factor", "input_shift")  # tensors that the original does not have
_ACTIVATION_SCALE = re.compile(r"(input_quantizer|matmul_quantizers\.\d+)\.scale$")
WEIGHT_SCALES, ACTIVATION_SCALES, HEADER = "scales of weights", "scales of activations", "header"


@dataclass
class Part:
    """Bytes of one kind of content, and of the same values in the original in float32 (0: it has none)."""

    part: str
    tensors: int = 0
    bytes: int = 0
    fp32_bytes: int = 0

    def add(self, stored: int, original: int) -> None:
        """Count one more tensor."""
        self.tensors += 1
        self.bytes += stored
        self.fp32_bytes += original


def size_parts(packed: PackedFile, file_bytes: int) -> list[Part]:
    """The parts of a packed file of `file_bytes` bytes, largest first; what no tensor takes is the header.

    Packed weights of numbered modules (blocks) are summed up by layout, others stand alone by their layer.
    """
    found: dict[str, Part] = {}

    def add(part: str, stored: int, original: int) -> None:
        found.setdefault(part, Part(part)).add(stored, original)

    streams = set()
    for layer, layout in packed.layouts.items():
        streams |= set(part_names(layer, layout).values())
        add(_weight_part(layer, layout), layout.value_bytes + layout.index_bytes, 4 * layout.size)
    for name, tensor in packed.tensors.items():
        if name not in streams:
            part, original = _part(packed, name, tensor)
            add(part, tensor.nbytes, original)
    parts = sorted(found.values(), key=lambda part: -part.bytes)
    return [*parts, Part(HEADER, 0, file_bytes - sum(part.bytes for part in parts))]


def size_report(packed: PackedFile, file_bytes: int) -> dict[str, Any]:
    """The report's figures: ratios to float32 of the file, of its packed weights, and of the N:M ones among them
    with and without their scales (None if there are none), and the parts."""
    parts = size_parts(packed, file_bytes)
    sparse = {layer: layout for layer, layout in packed.layouts.items() if not layout.dense}
    scales = sum(packed.tensors[name].nbytes for name in map(scale_name, sparse) if name in packed.tensors)
    fp32 = sum(part.fp32_bytes for part in parts)
    return {
        "fp32_bytes": fp32,
        "ratio": round(fp32 / file_bytes, 4),
        "weights_ratio": _ratio(packed.layouts),
        "sparse_weights_ratio": _ratio(sparse),
        "sparse_weights_ratio_with_scales": _ratio(sparse, scales),
        "breakdown": [asdict(part) for part in parts],
    }


def tensor_bytes(model: nn.Module, edits: list[dict[str, Any]]) -> int:
    """Bytes of all tensors of a model that `edits` compressed, in packed storage."""
    tensors, shared = unique_tensors(model.state_dict())
    packed = pack_tensors(Path(PACKED_FILE), tensors, edits, shared, {}).file
    return sum(tensor.nbytes for tensor in packed.tensors.values())


def _ratio(layouts: dict[str, Layout], more: int = 0) -> float | None:
    """Bytes in float32 over the bytes of the streams and `more`."""
    stored = more + sum(layout.value_bytes + layout.index_bytes for layout in layouts.values())
    return round(sum(4 * layout.size for layout in layouts.values()) / stored, 4) if layouts else None


def _weight_part(layer: str, layout: Layout) -> str:
    numbered = any(map(number_of, layer.split(".")))
    return layout.label() if numbered else f"{layout.label()}: {layer}"


def _part(packed: PackedFile, name: str, tensor: Tensor) -> tuple[str, int]:
    """The part that a tensor which is stored as it is belongs to, and its bytes in the original."""
    owner, _, leaf = name.rpartition(".")
    if name == scale_name(owner.removesuffix(".weight_quantizer")):
        return WEIGHT_SCALES, 0
    if _ACTIVATION_SCALE.search(name):
        return ACTIVATION_SCALES, 0
    if leaf in _ADDED or leaf == "weight_mask":
        return leaf, 0
    weight = packed.tensors.get(f"{owner}.weight")
    if leaf == "bias" and (owner in packed.layouts or (weight is not None and weight.dim() > 1)):
        return "biases", 4 * tensor.numel()
    if leaf in ("weight", "bias"):
        return ("norms" if tensor.dim() == 1 else "weights as they are"), 4 * tensor.numel()
    return leaf, 4 * tensor.numel()
