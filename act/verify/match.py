"""Rules that compare an exported file with the torch model's tensors, value by value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from act.export.onnx_graph import Array
from act.quant.fake_quant import HIGH, WIDE_BITS, weight_quantizer
from act.sparsity.masks import nm_violations, parse_pattern
from act.verify.onnx_file import OnnxFile, same_values
from act.verify.rules import Broken

_ACTIVATION_SCALE = re.compile(r"(input_quantizer|matmul_quantizers\.\d+)\.scale$")


@dataclass
class Expected:
    """What `arch.json` says was done: N:M patterns, weight bits and sizes of weight groups (0: none) by layer, and the
    layers whose inputs have 16 bits."""

    masks: dict[str, str] = field(default_factory=dict)
    weight_bits: dict[str, int] = field(default_factory=dict)
    group_sizes: dict[str, int] = field(default_factory=dict)
    wide: set[str] = field(default_factory=set)

    def codes(self, layer: str) -> str:
        """The name of a quantised layer's codes in the file."""
        return f"{layer}.weight_int4" if self.group_sizes.get(layer) else f"{layer}.weight_int8"

    @classmethod
    def from_edits(cls, edits: list[dict[str, Any]]) -> Expected:
        """Read the edits that compress layers; a later one replaces an earlier one."""
        found = cls()
        for edit in edits:
            if edit.get("op") == "mask":
                found.masks |= dict.fromkeys(edit["layers"], edit["pattern"])
            elif edit.get("op") == "quantize":
                found.weight_bits |= {name: int(spec["weight_bits"]) for name, spec in edit["layers"].items()}
                sizes = {name: int(spec.get("weight_group_size") or 0) for name, spec in edit["layers"].items()}
                found.group_sizes |= sizes
                wide = {name for name, spec in edit["layers"].items() if int(spec["activation_bits"]) == WIDE_BITS}
                found.wide = (found.wide - edit["layers"].keys()) | wide
        return found


def constants_match(file: OnnxFile, tensors: Mapping[str, Tensor]) -> str:
    """Every constant of the file that has a tensor's name holds that tensor, and no activation scale is missing."""
    shifted = {name.replace(".input_shift", ".bias") for name in tensors if name.endswith(".input_shift")}
    names = [name for name in file.constants if name in tensors and name not in shifted]
    scales = [name for name in tensors if _ACTIVATION_SCALE.search(name)]
    for name in dict.fromkeys([*names, *scales]):
        if name.endswith("weight_quantizer.scale") and tensors[name].dim() == 2:
            continue  # scales of groups lie in the file as their weights do, with which they are compared
        if not same_values(file.constant(name), tensors[name].numpy()):
            raise Broken(f"{name}: the ONNX file and model.safetensors differ")
    return f"{len(names)} tensors, {len(scales)} activation scales"


def weights_match(file: OnnxFile, tensors: Mapping[str, Tensor], expected: Expected) -> str:
    """Integer weights are round(weight / scale) of model.safetensors, float weights are its masked weights."""
    _require_layers(tensors, expected)
    integer = exact = 0
    for name in _layers(tensors):
        weight, mask = tensors[f"{name}.weight"], tensors.get(f"{name}.weight_mask")
        weight = weight if mask is None else weight * mask
        if name in expected.weight_bits:
            scale = _tensor(tensors, f"{name}.weight_quantizer.scale")
            stored = file.constant(f"{name}.weight_quantizer.scale")
            if not same_values(stored.T if scale.dim() == 2 else stored, scale.numpy()):
                raise Broken(f"{name}: its weight scales in the ONNX file and in model.safetensors differ")
            quantizer = weight_quantizer(scale, expected.weight_bits[name])
            codes = quantizer.codes(weight)
            compare_weight(name, file.constant(expected.codes(name)), codes)
            rounded = (quantizer.rows(codes) * scale.unsqueeze(-1)).reshape(codes.shape)
            _compare_shifted_bias(file, tensors, name, rounded)
            integer += 1
        elif mask is not None or file.stored_name(f"{name}.weight_float") is not None:
            compare_weight(name, file.constant(f"{name}.weight_float"), weight)
            _compare_shifted_bias(file, tensors, name, weight)
            exact += 1
    return f"{integer} integer weights, {exact} float weights"


def inputs_match(file: OnnxFile, tensors: Mapping[str, Tensor], expected: Expected) -> str:
    """Each product with a quantised weight really reads its input through Q/DQ with that layer's own scale."""
    layers: dict[str, list[str]] = {}
    for name in expected.weight_bits:
        stored = file.stored_name(expected.codes(name))
        if stored is None:
            raise Broken(f"{name}: its integer weight is not in the ONNX file")
        layers.setdefault(stored, []).append(name)
    count = 0
    for stored, names in layers.items():
        wanted = {scale for name in names for scale in _input_scales(tensors, name, name in expected.wide)}
        products = [user for dq in file.consumers.get(stored, []) for user in file.consumers.get(dq.output[0], [])]
        found = {_scale_before(file, node) for node in products}
        if found != wanted:
            raise Broken(f"{names[0]}: its products read inputs with scale {_show(found)}, expected {_show(wanted)}")
        count += len(products)
    return f"{count} products"


def sparse_weights(file: OnnxFile, tensors: Mapping[str, Tensor], expected: Expected) -> str:
    """N:M holds along K for the masks and weights of model.safetensors and for the weights in the ONNX file."""
    for name, text in expected.masks.items():
        pattern = parse_pattern(text)
        mask = _tensor(tensors, f"{name}.weight_mask")
        key = expected.codes(name) if name in expected.weight_bits else f"{name}.weight_float"
        stored = torch.from_numpy(np.array(file.constant(key)))
        stored = stored.t() if stored.dim() == 2 else stored
        in_file = f"{str(stored.dtype).removeprefix('torch.')} weight in the ONNX file"
        masked = _tensor(tensors, f"{name}.weight") * mask
        for what, value in (("mask", mask), ("weight in model.safetensors", masked), (in_file, stored)):
            broken = nm_violations(value, *pattern)
            if broken:
                raise Broken(f"{name}: {broken} groups of its {what} break {pattern} along K")
    return f"{len(expected.masks)} layers"


def compare_weight(name: str, stored: Array, wanted: Tensor, where: str = "model.safetensors") -> None:
    """Broken unless the constant `stored` of an ONNX file is the weight `wanted` that the file `where` has."""
    # A linear weight is stored [in, out].
    array = wanted.numpy().T if wanted.dim() == 2 else wanted.numpy()
    if stored.shape != array.shape or stored.dtype != array.dtype:
        raise Broken(f"{name}: its weight is {stored.dtype} {stored.shape}, expected {array.dtype} {array.shape}")
    different = np.argwhere(stored != array)
    if len(different):
        raise Broken(f"{name}: {len(different)} weights differ from {where}, first {different[0].tolist()}")


def _compare_shifted_bias(file: OnnxFile, tensors: Mapping[str, Tensor], name: str, weight: Tensor) -> None:
    """A layer whose input is shifted by c has the bias b + W c in the file, W being the weight it multiplies by."""
    shift = tensors.get(f"{name}.input_shift")
    if shift is None:
        return
    wanted = shift * weight.sum(1)
    if f"{name}.bias" in tensors:
        wanted = wanted + tensors[f"{name}.bias"]
    # Sums may be taken in another order on another machine.
    tolerance = 1e-5 * float(shift.abs() * weight.abs().sum(1).max()) + 1e-7
    if not np.allclose(file.constant(f"{name}.bias"), wanted.numpy(), rtol=1e-6, atol=tolerance):
        raise Broken(f"{name}: its bias in the ONNX file is not that of model.safetensors with the shift of its input")


def _scale_before(file: OnnxFile, product: onnx.NodeProto) -> float | None:
    """The scale of the DequantizeLinear that feeds the first operand of `product`; None when it is in float."""
    node = file.producers.get(product.input[0])
    if node is None or node.op_type != "DequantizeLinear":
        return None
    return float(file.constant(node.input[1]))


def _input_scales(tensors: Mapping[str, Tensor], layer: str, wide: bool) -> list[float | None]:
    scale = tensors.get(f"{layer}.input_quantizer.scale")
    if scale is None:
        return [None]
    return [float(scale), HIGH * float(scale)] if wide else [float(scale)]


def _show(scales: set[float | None]) -> str:
    return ", ".join("none (float)" if scale is None else f"{scale:.9g}" for scale in scales) or "of no product"


def _layers(tensors: Mapping[str, Tensor]) -> list[str]:
    return [name.removesuffix(".weight") for name, t in tensors.items() if name.endswith(".weight") and t.dim() > 1]


def _require_layers(tensors: Mapping[str, Tensor], expected: Expected) -> None:
    """What arch.json calls compressed must have tensors, and what has masks or quantisers must be in arch.json."""
    for name in (*expected.weight_bits, *expected.masks):
        _tensor(tensors, f"{name}.weight")
    for name in tensors:
        layer, _, kind = name.rpartition(".weight_mask")
        if layer and not kind and layer not in expected.masks:
            raise Broken(f"{name}: in model.safetensors, but no mask edit of arch.json names the layer")


def _tensor(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise Broken(f"{name}: not in model.safetensors")
    return tensors[name]
