"""Calibration: ranges for every quantiser from a few unlabelled images, then the mean error absorbed in biases."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from act.layers import CompressedLayer, CompressedLinear, compressed_layers
from act.quant.config import QuantConfig
from act.quant.fake_quant import WIDE_BITS, FakeQuantize
from act.quant.observer import CALIBRATIONS, AbsHistogram, percentile
from act.quant.rows import InputRows, collect_rows, weighted_mean

SHIFT_GAIN = 2.0  # a shift costs one subtraction, so it must cut the error of the layer's output by this factor
Shift = Callable[[dict[str, float]], None]
_FRACTIONS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # of the largest value, tried by `output`


def quantized_layers(model: nn.Module) -> list[tuple[str, CompressedLayer]]:
    """(name, layer) of every layer with a weight quantiser."""
    return [(name, layer) for name, layer in compressed_layers(model) if layer.weight_quantizer is not None]


def activation_quantizers(model: nn.Module) -> dict[str, FakeQuantize]:
    """Every activation quantiser by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, FakeQuantize) and m.channels is None}


@dataclass
class Calibrated:
    """What calibration did besides setting scales: inputs to shift, and how many biases were corrected."""

    shifts: dict[str, float]
    corrected: int


@torch.no_grad()
def calibrate(
    model: nn.Module, images: Iterable[Tensor], count: int, config: QuantConfig, shift: Shift | None = None
) -> Calibrated:
    """Set every scale from one floating-point pass over `images` ([B, C, H, W] batches, `count` images in all).

    Weights: the clip per channel with the smallest squared error. Activations: `config.calibration`, where `output`
    (linear layers; others fall back to mse) takes the clip with the smallest error of the layer's output. With
    `bias_correction`, the mean output error then goes into the bias (arXiv 1906.04721). An input that
    is skewed (a GELU's output has a long positive side only) is centred first where that pays, if `shift` is given: it
    is called with the values to be subtracted, by layer, and has to apply them.
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
        sampled = collect_rows(model, linears, images, count)
    finally:
        histograms = {name: quantizer.observer for name, quantizer in activations.items()}
        for quantizer in activations.values():
            quantizer.observer = None
        for _, layer in layers:
            _switch(layer, True)
    shifts: dict[str, float] = {}
    for name, quantizer in activations.items():
        layer_name, seen = name.removesuffix(".input_quantizer"), histograms[name]
        if quantizer.bits == WIDE_BITS:
            clip = histograms[name].largest  # steps are so small that there is nothing to weigh against clipping
        elif config.calibration == "output" and layer_name in sampled:
            centre = config.shift and shift is not None
            clip, value = _output_clip(linears[layer_name], sampled[layer_name], seen, centre)
            if value:
                shifts[layer_name] = value
        else:
            clip = _clip(seen, quantizer.qmax, config)
        quantizer.set_range(torch.tensor(clip))
    if shifts and shift is not None:
        shift(shifts)
    corrected = 0
    if config.bias_correction:
        corrected = sum(_correct_bias(linears[name], sample) for name, sample in sampled.items())
    return Calibrated(shifts, corrected)


def set_weight_scale(layer: CompressedLayer) -> None:
    """Scales of a layer's (masked) weight, per channel or group, with the smallest squared error."""
    quantizer = layer.weight_quantizer
    assert quantizer is not None
    weight = layer.weight.detach()
    if layer.weight_mask is not None:
        weight = weight * layer.weight_mask
    rows = quantizer.rows(weight).flatten(0, -2)
    quantizer.set_range(best_clip(rows, quantizer.qmax).reshape(quantizer.scale.shape))


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


def _output_clip(layer: CompressedLinear, sample: InputRows, seen: AbsHistogram, shift: bool) -> tuple[float, float]:
    """The activation clip with the smallest weighted squared error of the layer's output, and its shift (0: none)."""
    quantizer = layer.input_quantizer
    assert quantizer is not None
    rows, row_weights = sample.rows, sample.weights
    exact, scaled, weight = rows @ _dense(layer).t(), layer.scaled_input(rows), layer.effective_weight()

    def error(clip: float, center: float) -> float:
        scale = max(clip, 1e-8) / quantizer.qmax
        codes = ((scaled - center) / scale).round().clamp(quantizer.qmin, quantizer.qmax) * scale + center
        return weighted_mean((codes @ weight.t() - exact).square().mean(1), row_weights)

    plain = {seen.largest * fraction: 0.0 for fraction in _FRACTIONS}
    clip = min(plain, key=lambda c: error(c, 0.0))
    if shift and -seen.smallest < seen.largest / 2:  # a long positive side, a short negative one
        low = seen.smallest
        sides = [((seen.largest * fraction - low) / 2, (seen.largest * fraction + low) / 2) for fraction in _FRACTIONS]
        best = min(sides, key=lambda side: error(*side))
        if error(*best) * SHIFT_GAIN <= error(clip, 0.0):
            return best
    return clip, 0.0


def _correct_bias(layer: CompressedLinear, sample: InputRows) -> bool:
    if layer.bias is None:
        return False
    rows = sample.rows
    exact = rows @ _dense(layer).t() + layer.bias
    layer.bias.data.sub_((layer(rows) - exact).mean(0))
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
