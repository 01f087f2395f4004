"""Calibration: ranges for every quantiser from a few unlabelled images, then the mean error absorbed in biases."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from act.layers import CompressedLayer, CompressedLinear, compressed_layers
from act.quant.config import QuantConfig
from act.quant.fake_quant import FakeQuantize
from act.quant.observer import CALIBRATIONS, AbsHistogram, percentile
from act.quant.rows import collect_rows

_FRACTIONS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # of the largest value, tried by `output`


def quantized_layers(model: nn.Module) -> list[tuple[str, CompressedLayer]]:
    """(name, layer) of every layer with a weight quantiser."""
    return [(name, layer) for name, layer in compressed_layers(model) if layer.weight_quantizer is not None]


def activation_quantizers(model: nn.Module) -> dict[str, FakeQuantize]:
    """Every activation quantiser by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, FakeQuantize) and m.channels is None}


@torch.no_grad()
def calibrate(model: nn.Module, images: Iterable[Tensor], count: int, config: QuantConfig) -> int:
    """Set every scale from one floating-point pass over `images` ([B, C, H, W] batches, `count` images in all).

    Weights: the clip per channel with the smallest squared error. Activations: `config.calibration`, where `output`
    (linear layers; others fall back to mse) takes the clip with the smallest error of the layer's output. With
    `bias_correction`, the mean output error then goes into the bias (arXiv 1906.04721). Returns the number of those.
    """
    layers = quantized_layers(model)
    linears = {name: layer for name, layer in layers if isinstance(layer, CompressedLinear)}
    activations = activation_quantizers(model)
    for _, layer in layers:
        set_weight_scale(layer)
        _switch(layer, False)
    for quantizer in activations.values():
        quantizer.observer = AbsHistogram()
    try:
        rows = {name: seen.rows for name, seen in collect_rows(model, linears, images, count).items()}
    finally:
        histograms = {name: quantizer.observer for name, quantizer in activations.items()}
        for quantizer in activations.values():
            quantizer.observer = None
        for _, layer in layers:
            _switch(layer, True)
    for name, quantizer in activations.items():
        layer_name = name.removesuffix(".input_quantizer")
        if config.calibration == "output" and layer_name in rows:
            clip = _output_clip(linears[layer_name], rows[layer_name], histograms[name].largest)
        else:
            clip = _clip(histograms[name], quantizer.qmax, config)
        quantizer.set_range(torch.tensor(clip))
    if not config.bias_correction:
        return 0
    return sum(_correct_bias(linears[name], sample) for name, sample in rows.items())


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
    method = "mse" if config.calibration == "output" else config.calibration
    return CALIBRATIONS[method](seen, qmax)


def _output_clip(layer: CompressedLinear, rows: Tensor, largest: float) -> float:
    """The activation clip with the smallest squared error of the layer's output over `rows` [R, K]."""
    quantizer = layer.input_quantizer
    assert quantizer is not None
    exact = rows @ _dense(layer).t()
    scaled = layer.scaled_input(rows)
    weight = layer.effective_weight()
    errors = {}
    for fraction in _FRACTIONS:
        scale = max(largest * fraction, 1e-8) / quantizer.qmax
        codes = (scaled / scale).round().clamp(quantizer.qmin, quantizer.qmax) * scale
        errors[fraction] = float((codes @ weight.t() - exact).square().mean())
    return largest * min(errors, key=lambda fraction: errors[fraction])


def _correct_bias(layer: CompressedLinear, rows: Tensor) -> bool:
    if layer.bias is None:
        return False
    error = layer.quantized_input(rows) @ layer.effective_weight().t() - rows @ _dense(layer).t()
    layer.bias.data.sub_(error.mean(0))
    return True


def _dense(layer: CompressedLinear) -> Tensor:
    """The weight in floating point, for the layer's raw input: masked, without the input factor."""
    weight = layer.weight.detach()
    if layer.weight_mask is not None:
        weight = weight * layer.weight_mask
    return weight if layer.input_factor is None else weight * layer.input_factor


def _switch(layer: CompressedLayer, on: bool) -> None:
    for quantizer in (layer.weight_quantizer, layer.input_quantizer):
        if quantizer is not None:
            quantizer.enabled = on
