"""`model.packed.safetensors`: a compressed model's tensors with its weights packed.

A safetensors file whose `__metadata__` says how each packed weight lies: `format` and `version`, `weights` (JSON, one
`Layout` for each layer), `sha256` over layouts and tensors, and what a file says of its run. The weight of layer L is
`L.weight.values` and, unless it is dense, `L.weight.indices`; every other tensor has its name in the model's state and
is stored as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from act.errors import InputError
from act.run.atomic import replacing
from act.run.reading import check_header
from act.storage.codec import INDICES, VALUES, unpack_weight
from act.storage.layout import FLOAT_BITS, Layout

PACKED_FILE = "model.packed.safetensors"
FORMAT, VERSION = "vitcompress.packed", "1"
_OWN = ("format", "version", "weights", "sha256")
_LARGEST_SIDE = 4096  # pixels


@dataclass(frozen=True)
class PackedFile:
    """Layouts by layer, tensors by their names in the file, and what the file says of its run."""

    path: Path
    layouts: dict[str, Layout]
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)

    def weight(self, layer: str) -> tuple[Tensor, Tensor | None]:
        """The codes (int8; float32 where it is not quantised) of a layer's weight and its mask, None if dense."""
        layout = self.layouts[layer]
        stored = {part: self.tensors[name] for part, name in part_names(layer, layout).items()}
        try:
            return unpack_weight(layout, stored)
        except ValueError as error:
            raise InputError(f"{self.path}: {layer}: {error}; the file is damaged, export it again") from error

    def state(self) -> dict[str, Tensor]:
        """The tensors of the model's state; a quantised weight is its codes times its scales."""
        packed = {name for layer, layout in self.layouts.items() for name in part_names(layer, layout).values()}
        found = {name: tensor for name, tensor in self.tensors.items() if name not in packed}
        for layer, layout in self.layouts.items():
            weight, mask = self.weight(layer)
            if layout.bits != FLOAT_BITS:
                scale = self.tensors[scale_name(layer)]
                weight = (weight.reshape(*scale.shape, -1) * scale.unsqueeze(-1)).reshape(layout.shape)
            found[f"{layer}.weight"] = weight
            if mask is not None:
                found[f"{layer}.weight_mask"] = mask
        return found

    def input_size(self) -> tuple[int, int, int]:
        """[channels, height, width] of the images that the model takes."""
        try:
            sizes = json.loads(self.metadata["preprocess"])["input_size"]
            if len(sizes) == 3 and all(type(size) is int and 0 < size <= _LARGEST_SIDE for size in sizes):
                return sizes[0], sizes[1], sizes[2]
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise InputError(f"{self.path}: preprocess: gives no input_size of three lengths up to {_LARGEST_SIDE}")


def part_names(layer: str, layout: Layout) -> dict[str, str]:
    """The names of a packed weight's parts in the file."""
    parts = (VALUES,) if layout.dense else (VALUES, INDICES)
    return {part: f"{layer}.weight.{part}" for part in parts}


def scale_name(layer: str) -> str:
    """The name of the scales of a layer's weight."""
    return f"{layer}.weight_quantizer.scale"


def write_packed(packed: PackedFile) -> None:
    """Write the file to its path atomically."""
    weights = json.dumps({layer: layout.as_json() for layer, layout in packed.layouts.items()})
    own = (FORMAT, VERSION, weights, digest(weights, packed.tensors))
    with replacing(packed.path) as temporary:
        save_file(packed.tensors, temporary, metadata={**packed.metadata, **dict(zip(_OWN, own, strict=True))})


def read_packed(path: str | Path) -> PackedFile:
    """Read and check a packed file; InputError in one line if it is missing, damaged or of another kind.

    Layouts and sizes are checked against each other before any weight is unpacked.
    """
    where = Path(path)
    if not where.is_file():
        raise InputError(f"{where}: no such file")
    check_header(where)
    try:
        with safe_open(where, "pt") as file:
            header = dict(file.metadata() or {})
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names} if header.get("format") == FORMAT else {}
    except Exception as error:  # the reader raises types of its own; whatever it is, the file is the problem
        raise InputError(f"{where}: not a readable safetensors file: {error}") from error
    kind = (header.get("format"), header.get("version"))
    if kind != (FORMAT, VERSION):
        raise InputError(f"{where}: format {kind[0]!r}, version {kind[1]!r}; this version reads {FORMAT} {VERSION}")
    layouts = _layouts(header.get("weights", ""), where)
    for layer, layout in layouts.items():
        _check_parts(layer, layout, tensors, where)
    if header.get("sha256") != digest(header["weights"], tensors):
        raise InputError(f"{where}: its content is not what its sha256 says; it is damaged, export it again")
    return PackedFile(where, layouts, tensors, {key: text for key, text in header.items() if key not in _OWN})


def _layouts(text: str, where: Path) -> dict[str, Layout]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: weights: not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise InputError(f"{where}: weights: must be an object with one entry for each packed layer")
    found = {}
    for layer, entry in entries.items():
        try:
            found[layer] = Layout.from_json(entry)
        except ValueError as error:
            raise InputError(f"{where}: weights: {layer[:100]}: {error}") from error
    return found


def _check_parts(layer: str, layout: Layout, tensors: Mapping[str, Tensor], where: Path) -> None:
    """The tensors of a packed weight are there, with the types and sizes that its layout makes."""
    floats = layout.bits == FLOAT_BITS
    values = (torch.float32, (layout.values,)) if floats else (torch.uint8, (layout.value_bytes,))
    wanted = {VALUES: values, INDICES: (torch.uint8, (layout.index_bytes,))}
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    expected = {name: wanted[part] for part, name in part_names(layer, layout).items()}
    if not floats:
        expected[scale_name(layer)] = (torch.float32, layout.scale_shape)
    for name, (dtype, shape) in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise InputError(f"{where}: {name}: missing, though {layer} is listed as {layout.label()}")
        if (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
            raise InputError(
                f"{where}: {name}: is {tensor.dtype} {list(tensor.shape)}; "
                f"{layout.label()} {list(layout.shape)} takes {dtype} {list(shape)}"
            )
    for name in (f"{layer}.weight", f"{layer}.weight_mask"):
        if name in tensors:
            raise InputError(f"{where}: {name}: there twice, packed and as it is")


def digest(weights: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the layouts and over name, type, shape and content of every tensor."""
    digest = hashlib.sha256(weights.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
