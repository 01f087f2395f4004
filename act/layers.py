"""Linear and convolution layers whose masks and quantisers are module state.

The dense parameter keeps its name (`weight`), so a checkpoint of the base model still loads; a mask is the
buffer `weight_mask`, quantisers are the children `weight_quantizer` and `input_quantizer`. Because they belong
to the module they survive optimiser steps, averaging, deep copies, checkpoints and every later stage.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from act.edits import edit_op
from act.errors import InputError
from act.quant.fake_quant import FakeQuantize
from act.sparsity.srste import StraightThrough


class _Compressed:
    """State and weight of a compressed layer; mixed into nn.Linear and nn.Conv2d."""

    weight: Tensor
    weight_mask: Tensor | None
    weight_quantizer: FakeQuantize | None
    input_quantizer: FakeQuantize | None
    input_factor: Tensor | None  # [in]: the input is multiplied by it (equalisation that nothing could absorb)
    input_shift: Tensor | None  # scalar subtracted from the input before it is quantised, given back in the bias
    straight_through: bool  # SR-STE: pruned weights keep receiving the gradient

    def effective_weight(self) -> Tensor:
        """The weight the forward pass uses: masked, then fake-quantised. Same shape as `weight`."""
        weight = self.weight
        if self.weight_mask is not None:
            if self.straight_through and self.weight.requires_grad:
                weight = StraightThrough.apply(weight, self.weight_mask)
            else:
                weight = weight * self.weight_mask
        if self.weight_quantizer is not None:
            weight = self.weight_quantizer(weight)
        return weight

    def scaled_input(self, x: Tensor) -> Tensor:
        """The layer's input after its equalisation factor and shift, if it has them."""
        if self.input_factor is not None:
            x = x * self.input_factor
        return x if self.input_shift is None else x - self.input_shift

    def quantized_input(self, x: Tensor) -> Tensor:
        """The layer's input as its integer kernel will see it."""
        if self.input_quantizer is None:
            return self.scaled_input(x)
        quantized: Tensor = self.input_quantizer(x, self.input_factor, self.input_shift)
        return quantized


class CompressedLinear(_Compressed, nn.Linear):
    """nn.Linear with an optional N:M mask and optional quantisers. Input [..., in], output [..., out]."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.effective_weight()
        return F.linear(self.quantized_input(x), weight, self.shifted_bias(weight))

    def shifted_bias(self, weight: Tensor) -> Tensor | None:
        """The bias [out] for the shifted input: W (x - c) + (b + W c) is W x + b."""
        if self.input_shift is None:
            return self.bias
        shift = self.input_shift * weight.sum(1)
        return shift if self.bias is None else self.bias + shift


class CompressedConv2d(_Compressed, nn.Conv2d):
    """nn.Conv2d with an optional N:M mask and optional quantisers. Input [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(self.quantized_input(x), self.effective_weight(), self.bias)
        return y


CompressedLayer = CompressedLinear | CompressedConv2d
_SWAPS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: CompressedLinear, nn.Conv2d: CompressedConv2d}


def compressible(module: nn.Module) -> bool:
    """Whether the layer can be compressed: exactly nn.Linear or nn.Conv2d, or compressed already."""
    return type(module) in _SWAPS or isinstance(module, _Compressed)


def compress_layer(model: nn.Module, name: str) -> CompressedLayer:
    """Make the layer called `name` a compressed layer (parameters untouched) and return it."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise InputError(f"{name}: the model has no such layer") from None
    if isinstance(module, CompressedLinear | CompressedConv2d):
        return module
    if type(module) not in _SWAPS:
        raise InputError(f"{name}: {type(module).__name__} cannot be compressed; only nn.Linear and nn.Conv2d can")
    # Changing the class in place keeps parameters, hooks and every reference other modules hold to the layer.
    module.__class__ = _SWAPS[type(module)]
    module.register_buffer("weight_mask", None)
    module.register_buffer("input_factor", None)
    module.register_buffer("input_shift", None)
    module.register_module("weight_quantizer", None)
    module.register_module("input_quantizer", None)
    module.straight_through = False  # type: ignore[assignment]
    return module  # type: ignore[return-value]


def compressed_layers(model: nn.Module) -> Iterable[tuple[str, CompressedLayer]]:
    """(name, layer) of every compressed layer, in registration order."""
    for name, module in model.named_modules():
        if isinstance(module, CompressedLinear | CompressedConv2d):
            yield name, module


@edit_op("mask")
def mask_layers(model: nn.Module, layers: list[str], pattern: str) -> None:
    """Give each named layer an all-true mask buffer; the strategy fills it. `pattern` is kept for `verify`."""
    for name in layers:
        layer = compress_layer(model, name)
        layer.weight_mask = torch.ones_like(layer.weight, dtype=torch.bool)


@edit_op("scale_input")
def scale_inputs(model: nn.Module, layers: list[str]) -> None:
    """Give each named linear layer an input factor of ones; the strategy fills it."""
    for name in layers:
        layer = compress_layer(model, name)
        if not isinstance(layer, CompressedLinear):
            raise InputError(f"{name}: an input factor needs a linear layer")
        layer.input_factor = torch.ones(layer.in_features, device=layer.weight.device)


@edit_op("shift_input")
def shift_inputs(model: nn.Module, layers: list[str]) -> None:
    """Give each named linear layer an input shift of zero; the strategy fills it."""
    for name in layers:
        layer = compress_layer(model, name)
        if not isinstance(layer, CompressedLinear):
            raise InputError(f"{name}: an input shift needs a linear layer")
        layer.input_shift = torch.zeros((), device=layer.weight.device)


def weight_groups(weight: Tensor, size: int, name: str) -> int:
    """Groups of `size` values along K of a linear weight [out, K], two or more; 1 for size 0. InputError if they do
    not fit."""
    if not size:
        return 1
    if weight.dim() != 2 or weight.shape[1] % size or weight.shape[1] == size:
        raise InputError(f"{name}: weight_group_size {size} does not divide the K of its weight {list(weight.shape)}")
    return weight.shape[1] // size


@edit_op("quantize")
def quantize_layers(model: nn.Module, layers: dict[str, dict[str, Any]]) -> None:
    """Give each named layer its quantisers.

    A layer's entry holds `weight_bits`, `weight_group_size` (values along K with one scale; 0 or none: a whole
    channel), `activation_bits` (0: the input stays in floating point), `learn` (fixed, pact or lsq) and `signed`
    (whether the input takes negative values).
    """
    for name, spec in layers.items():
        layer = compress_layer(model, name)
        learn = str(spec.get("learn", "fixed"))
        size = int(spec.get("weight_group_size") or 0)
        layer.weight_quantizer = FakeQuantize(
            bits=int(spec["weight_bits"]),
            channels=len(layer.weight),
            learn="lsq" if learn == "lsq" else "fixed",
            groups=weight_groups(layer.weight, size, name),
        )
        if int(spec["activation_bits"]):
            layer.input_quantizer = FakeQuantize(
                bits=int(spec["activation_bits"]), signed=bool(spec.get("signed", True)), learn=learn
            )
