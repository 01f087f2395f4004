"""What each compressed layer becomes in an exported graph.

The export copy of a model has these modules in place of compressed layers and fake quantisers. Their buffers are
the initialisers of the file: `<layer>.weight_int8` (`weight_int4` with groups), and every scale under the name it
has in the model's state, so that the file can be mapped back to the model. Q and DQ are emitted as ONNX operators
directly; no exporter translation and no graph pattern stands between the module's scale and the file's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from act.errors import ExportError
from act.layers import CompressedConv2d, CompressedLayer, CompressedLinear, compress_layer, compressed_layers
from act.quant.fake_quant import HIGH, WIDE_BITS, FakeQuantize


def _quantize(x: Tensor, scale: Tensor, zero: Tensor, axis: int) -> Tensor:
    return torch.onnx.ops.symbolic(
        "QuantizeLinear", (x, scale, zero), attrs={"axis": axis}, dtype=zero.dtype, shape=x.shape
    )


def _dequantize_groups(codes: Tensor, scale: Tensor, size: int) -> Tensor:
    """`codes` [K, N] with `scale` [K / size, N]. No zero point: the codes become packed INT4 after the export."""
    return torch.onnx.ops.symbolic(
        "DequantizeLinear",
        (codes, scale),
        attrs={"axis": 0, "block_size": size},
        dtype=scale.dtype,
        shape=codes.shape,
    )


def _dequantize(codes: Tensor, scale: Tensor, zero: Tensor, axis: int) -> Tensor:
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", (codes, scale, zero), attrs={"axis": axis}, dtype=scale.dtype, shape=codes.shape
    )


class _Grid(nn.Module):
    """Scale and zero point of a quantiser, under the quantiser's own names."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: FakeQuantize, name: str) -> None:
        super().__init__()
        scale = quantizer.scale.detach().clone()
        self.groups = quantizer.groups
        if quantizer.observer is not None:
            raise ExportError(f"{name}: still being calibrated; finish the calibration before exporting")
        if not bool(torch.isfinite(scale).all()) or not bool((scale > 0).all()):
            raise ExportError(f"{name}: its scale must be finite and > 0, found {scale.min():g} to {scale.max():g}")
        # Groups run along K, which is the first axis of a stored linear weight.
        self.register_buffer("scale", scale if self.groups == 1 else scale.t().contiguous())
        self.register_buffer("zero_point", torch.zeros(scale.shape, dtype=quantizer.code_type))


class QuantizeDequantize(_Grid):
    """A fake quantiser of an activation as QuantizeLinear and DequantizeLinear; same shape and dtype.

    QuantizeLinear saturates at the limits of int8 or uint8. A narrower range (fewer bits) needs a Clip before it.
    """

    def __init__(self, quantizer: FakeQuantize, name: str) -> None:
        super().__init__(quantizer, name)
        if quantizer.channels is not None:
            raise ExportError(f"{name}: a per-channel quantiser outside a layer's weight cannot be exported")
        limits = torch.iinfo(quantizer.code_type)
        self.low = None if quantizer.qmin == limits.min else quantizer.qmin * float(self.scale)
        self.high = None if quantizer.qmax == limits.max else quantizer.qmax * float(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        if self.low is not None or self.high is not None:
            x = torch.clamp(x, self.low, self.high)
        return _dequantize(_quantize(x, self.scale, self.zero_point, 0), self.scale, self.zero_point, 0)


class WideQuantizeDequantize(_Grid):
    """A fake quantiser of 16 bits as two int8 ones: x on the grid of 256 scales, and what that leaves on the fine one.

    Products run on 8 bits in every runtime, and W x is W high + W low.
    """

    high_scale: Tensor

    def __init__(self, quantizer: FakeQuantize, name: str) -> None:
        super().__init__(quantizer, name)
        self.register_buffer("high_scale", self.scale * HIGH)
        self.register_buffer("zero_point", torch.zeros(self.scale.shape, dtype=torch.int8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        high = self._round(x, self.high_scale)
        return high, self._round(x - high, self.scale)

    def _round(self, x: Tensor, scale: Tensor) -> Tensor:
        return _dequantize(_quantize(x, scale, self.zero_point, 0), scale, self.zero_point, 0)


class _Form(nn.Module):
    """Weight and input of an exported layer. `axis` is the output-channel axis of the stored weight."""

    weight_int8: Tensor
    weight_int4: Tensor
    weight_float: Tensor
    input_factor: Tensor | None
    input_shift: Tensor | None
    weight_quantizer: _Grid | None
    input_quantizer: QuantizeDequantize | WideQuantizeDequantize | None

    def __init__(self, layer: CompressedLayer, name: str, calls: set[str], axis: int) -> None:
        super().__init__()
        self.axis = axis
        # Shared and mutable, since tracing puts a module's attributes back to what they were.
        self.name, self.calls = name, calls
        if isinstance(layer, CompressedLinear) and layer.input_shift is not None:
            with torch.no_grad():
                self.register_buffer("bias", layer.shifted_bias(layer.effective_weight()))
        else:
            self.bias = layer.bias
        self.weight_quantizer = self.input_quantizer = None
        weight = layer.weight.detach()
        if layer.weight_mask is not None:
            weight = weight * layer.weight_mask
        quantizer = layer.weight_quantizer
        if quantizer is None or not quantizer.enabled:
            self.register_buffer("weight_float", self._stored(weight))
        else:
            self.weight_quantizer = _Grid(quantizer, f"{name}.weight_quantizer")
            codes = "weight_int8" if quantizer.groups == 1 else "weight_int4"
            self.register_buffer(codes, self._stored(quantizer.codes(weight)))
        self.register_buffer("input_factor", layer.input_factor)
        self.register_buffer("input_shift", layer.input_shift)
        if layer.input_quantizer is not None and layer.input_quantizer.enabled:
            kind = WideQuantizeDequantize if layer.input_quantizer.bits == WIDE_BITS else QuantizeDequantize
            self.input_quantizer = kind(layer.input_quantizer, f"{name}.input_quantizer")

    @property
    def weight(self) -> Tensor:
        """The weight in torch's layout, for a model that asks for its type or multiplies by it directly."""
        weight = self._weight()
        return weight.t() if weight.dim() == 2 else weight

    def _stored(self, weight: Tensor) -> Tensor:
        return weight.clone()

    def _weight(self) -> Tensor:
        grid = self.weight_quantizer
        if grid is None:
            return self.weight_float
        if grid.groups > 1:
            return _dequantize_groups(self.weight_int4, grid.scale, len(self.weight_int4) // grid.groups)
        return _dequantize(self.weight_int8, grid.scale, grid.zero_point, self.axis)

    def _inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """What the weight is multiplied with: the (dequantised) input, of 16 bits its high and its low part."""
        self.calls.add(self.name)
        x = x if self.input_factor is None else x * self.input_factor
        x = x if self.input_shift is None else x - self.input_shift
        if self.input_quantizer is None:
            return (x,)
        quantized = self.input_quantizer(x)
        return quantized if isinstance(quantized, tuple) else (quantized,)


class ExportedLinear(_Form):
    """Linear as MatMul and Add with the weight stored [in, out].

    DequantizeLinear feeds the MatMul directly, since a Transpose between the two keeps ONNX Runtime from fusing
    them. A two-dimensional input to quantise goes through a leading axis of 1: MatMul and Add of matrices would
    be merged into a Gemm first, which runs on integers only with an integer bias.
    """

    def __init__(self, layer: CompressedLinear, name: str, calls: set[str]) -> None:
        super().__init__(layer, name, calls, axis=1)

    def _stored(self, weight: Tensor) -> Tensor:
        return weight.t().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.dim() == 2 and self.input_quantizer is not None
        first, *rest = self._inputs(x.unsqueeze(0) if flat else x)
        weight = self._weight()
        y = torch.matmul(first, weight)
        # The bias follows the first product, where runtimes put it into the integer operator.
        y = y if self.bias is None else y + self.bias
        for part in rest:
            y = y + torch.matmul(part, weight)
        return y.squeeze(0) if flat else y


class ExportedConv2d(_Form):
    """Convolution with the weight stored as in torch, [out, in / groups, kh, kw]."""

    def __init__(self, layer: CompressedConv2d, name: str, calls: set[str]) -> None:
        super().__init__(layer, name, calls, axis=0)
        if layer.padding_mode != "zeros":
            raise ExportError(f"{name}: padding_mode {layer.padding_mode!r} cannot be exported; allowed: zeros")
        self.stride, self.padding = layer.stride, layer.padding
        self.dilation, self.groups = layer.dilation, layer.groups

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self._inputs(x)
        weight = self._weight()
        y = self._convolve(first, weight, self.bias)
        for part in rest:
            y = y + self._convolve(part, weight, None)
        return y

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


@dataclass(frozen=True)
class Forms:
    """What `to_export_forms` put in: compressed `layers`, the `buffers` the traced graph must contain by initialiser
    name, and the names of the layers that a traced forward has called."""

    layers: list[str]
    buffers: dict[str, Tensor]
    calls: set[str]


def to_export_forms(model: nn.Module) -> Forms:
    """Replace, in place, every linear layer, compressed convolution and fake quantiser by its export form."""
    names = [name for name, _ in compressed_layers(model)]
    for name, module in list(model.named_modules()):
        # Layers that were not compressed become the same form, so that their weights keep a name in the file too.
        if type(module) is nn.Linear:
            compress_layer(model, name)
    calls: set[str] = set()
    forms: dict[int, nn.Module] = {}
    for name, layer in compressed_layers(model):
        linear = isinstance(layer, CompressedLinear)
        forms[id(layer)] = ExportedLinear(layer, name, calls) if linear else ExportedConv2d(layer, name, calls)  # type: ignore[arg-type]
    _replace(model, forms)
    quantizers = [(name, module) for name, module in model.named_modules() if isinstance(module, FakeQuantize)]
    _replace(model, {id(m): QuantizeDequantize(m, name) if m.enabled else nn.Identity() for name, m in quantizers})
    buffers = {
        f"{name}.{key}": buffer
        for name, module in model.named_modules()
        if isinstance(module, _Grid) or name in names
        for key, buffer in module.named_buffers(recurse=False)
        # Zero points are shared by all.
        if not key.endswith("zero_point")
    }
    return Forms(names, buffers, calls)


def _replace(model: nn.Module, new: dict[int, nn.Module]) -> None:
    """Put `new[id(module)]` wherever `module` is a child; a module with two parents stays one module."""
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if id(child) in new:
                parent._modules[child_name] = new[id(child)]
