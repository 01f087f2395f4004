"""Calibration: ranges for every quantiser from a few unlabelled images, then the mean error absorbed in biases."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from act.layers import CompressedConv2d, CompressedLayer, compressed_layers
from act.quant.config import QuantConfig
from act.quant.fake_quant import FakeQuantize
from act.quant.observer import CALIBRATIONS, AbsHistogram, percentile


def quantized_layers(model: nn.Module) -> list[tuple[str, CompressedLayer]]:
    """(name, layer) of every layer with a weight quantiser."""
    return [(name, layer) for name, layer in compressed_layers(model) if layer.weight_quantizer is not None]


def activation_quantizers(model: nn.Module) -> list[tuple[str, FakeQuantize]]:
    """(name, quantiser) of every activation quantiser."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, FakeQuantize) and m.channels is None]


@torch.no_grad()
def calibrate(model: nn.Module, images: Iterable[Tensor], config: QuantConfig) -> None:
    """Set every scale. Weights: the clip per channel that minimises the squared error. Activations: `config.calibration`.

    `images` yields [B, C, H, W]; one pass, in floating point, nothing kept but histograms.
    """
    activations = activation_quantizers(model)
    weights = [layer.weight_quantizer for _, layer in quantized_layers(model) if layer.weight_quantizer is not None]
    for quantizer in weights:
        quantizer.enabled = False
    for _, quantizer in activations:
        quantizer.observer = AbsHistogram()
    try:
        for batch in images:
            model(batch)
    finally:
        seen = {name: quantizer.observer for name, quantizer in activations}
        for _, quantizer in activations:
            quantizer.observer = None
        for quantizer in weights:
            quantizer.enabled = True
    for name, quantizer in activations:
        quantizer.set_range(torch.tensor(_clip(seen[name], quantizer.qmax, config)))
    for _, layer in quantized_layers(model):
        set_weight_scale(layer)


def set_weight_scale(layer: CompressedLayer) -> None:
    """Per-channel scale of a layer's (masked) weight with the smallest squared error."""
    assert layer.weight_quantizer is not None
    weight = layer.weight.detach()
    if layer.weight_mask is not None:
        weight = weight * layer.weight_mask
    layer.weight_quantizer.set_range(best_clip(weight.flatten(1), layer.weight_quantizer.qmax))


def best_clip(rows: Tensor, qmax: int) -> Tensor:
    """Per row of [R, K]: the clip among 40 fractions of the largest value that minimises the squared error. [R]."""
    largest = rows.abs().amax(1).clamp(min=1e-8)
    best, best_error = largest.clone(), torch.full_like(largest, float("inf"))
    for fraction in torch.linspace(1.0, 0.3 if qmax < 127 else 0.75, 40).tolist():
        scale = (largest * fraction / qmax)[:, None]
        error = ((rows / scale).round().clamp(-qmax, qmax) * scale - rows).square().sum(1)
        better = error < best_error
        best = torch.where(better, largest * fraction, best)
        best_error = torch.where(better, error, best_error)
    return best


def _clip(seen: AbsHistogram, qmax: int, config: QuantConfig) -> float:
    if config.calibration == "percentile":
        return percentile(seen, qmax, config.percentile)
    return CALIBRATIONS[config.calibration](seen, qmax)


@torch.no_grad()
def correct_biases(model: nn.Module, images: Iterable[Tensor]) -> int:
    """Subtract the mean output error per channel that quantisation causes, from each layer's bias. Returns how many.

    The means of all layers come from one pass with quantisation off and one with it on (bias correction, arXiv
    1906.04721, applied to all layers at once: each layer's own error given a floating-point input mean).
    """
    layers = [(n, layer) for n, layer in quantized_layers(model) if layer.bias is not None]
    before, after = _output_means(model, layers, images, False), _output_means(model, layers, images, True)
    for name, layer in layers:
        layer.bias.sub_(after[name] - before[name])
    return len(layers)


def _output_means(
    model: nn.Module, layers: list[tuple[str, CompressedLayer]], images: Iterable[Tensor], quantized: bool
) -> dict[str, Tensor]:
    """Mean output per channel of each layer, for inputs of the floating-point model."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def hook(name: str):  # type: ignore[no-untyped-def]
        def record(layer: CompressedLayer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if quantized:
                _switch(layer, True)
                output = layer.forward(inputs[0])
                _switch(layer, False)
            axis = 1 if isinstance(layer, CompressedConv2d) else -1
            flat = output.movedim(axis, -1).flatten(0, -2)
            sums[name] = sums.get(name, torch.zeros(flat.shape[1])) + flat.sum(0)
            counts[name] = counts.get(name, 0) + flat.shape[0]

        return record

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers]
    for _, layer in layers:
        _switch(layer, False)
    try:
        for batch in images:
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
        for _, layer in layers:
            _switch(layer, True)
    return {name: sums[name] / counts[name] for name in sums}


def _switch(layer: CompressedLayer, on: bool) -> None:
    for quantizer in (layer.weight_quantizer, layer.input_quantizer):
        if quantizer is not None:
            quantizer.enabled = on
