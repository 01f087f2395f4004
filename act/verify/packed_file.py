"""Whether the packed file holds the compressed model, to the bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from act.storage.file import read_packed
from act.storage.layout import FLOAT_BITS
from act.storage.pack import pack_tensors
from act.verify.match import Expected, compare_weight
from act.verify.onnx_file import OnnxFile
from act.verify.rules import Broken


def packed_file(path: Path, file: OnnxFile, tensors: Mapping[str, Tensor], arch: dict[str, Any]) -> str:
    """Unpacks every weight and compares it with the ONNX file's; packs model.safetensors anew and compares every
    stored tensor. Broken where they differ."""
    found = read_packed(path)
    expected = Expected.from_edits(arch["edits"])
    for layer, layout in found.layouts.items():
        name = f"{layer}.weight_float" if layout.bits == FLOAT_BITS else expected.codes(layer)
        compare_weight(layer, file.constant(name), found.weight(layer)[0], path.name)
    wanted = pack_tensors(path, tensors, arch["edits"], arch["shared"], {}).file
    wrong = [layer for layer in found.layouts | wanted.layouts if found.layouts.get(layer) != wanted.layouts.get(layer)]
    if wrong:
        raise Broken(f"{path.name}: {wrong[0]}: not stored as it would be from model.safetensors; export it again")
    wrong = [name for name in found.tensors | wanted.tensors if not _same(found.tensors, wanted.tensors, name)]
    if wrong:
        raise Broken(f"{path.name}: {len(wrong)} tensors are not those of model.safetensors: {', '.join(wrong[:3])}")
    kinds = Counter(layout.label() for layout in found.layouts.values())
    return ", ".join(f"{count} weights {kind}" for kind, count in kinds.items())


def _same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str) -> bool:
    """Whether both hold a tensor `name` of one type and shape with the same bytes."""
    if name not in found or name not in wanted:
        return False
    a, b = found[name].numpy(), wanted[name].numpy()
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
