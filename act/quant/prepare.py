"""From a floating-point model to a calibrated, fake-quantised one: shared by QuantAware and QuantPost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from act.calibration import CalibrationImages
from act.errors import InputError
from act.layers import CompressedLinear
from act.quant.calibrate import calibrate, quantized_layers
from act.quant.config import QuantConfig, op_type
from act.quant.equalize import equalize
from act.quant.matmul import attention_modules
from act.quant.rows import Grid
from act.selection import glob_reason, select_layers
from act.strategies.base import Invariant, LayerLeft, LayerPlan

if TYPE_CHECKING:
    from act.context import Context


OUTLIER = "input left in floating point, weight quantised: a few of its values are so large that integers lose the rest"
WEIGHT_ONLY = "input left in floating point, weight quantised: activation_bits is 0"
EDGE = "input left in floating point, weight quantised: patch embedding or head, unless first_and_last is true"


def quant_plan(model: nn.Module, config: QuantConfig, ctx: Context) -> LayerPlan:
    """Layers (and, with `matmul`, attention modules) to quantise; the rest with reasons."""
    plan = select_layers(model, ctx.input_size, config.include, config.exclude)
    done = []
    for name in plan.done:
        kind = op_type(model.get_submodule(name))
        if kind in config.quantize_op_types:
            done.append(name)
        else:
            plan.left.append(LayerLeft(name, f"{kind} is not in quantize_op_types"))
    plan.done = done
    attentions = attention_modules(model)
    for name in attentions:
        reason: str | None = "matmul is not in quantize_op_types"
        if "matmul" in config.quantize_op_types:
            reason = glob_reason(name, config.include, config.exclude)
        if reason is None:
            plan.done.append(name)
        else:
            plan.left.append(LayerLeft(name, f"attention products: {reason}"))
    return plan


def prepare_quantized(model: nn.Module, config: QuantConfig, ctx: Context, learn: str) -> None:
    """Equalise, add quantisers (through `ctx.edit`), calibrate, correct biases. `learn`: fixed, pact or lsq."""
    was_training = model.training
    model.eval()
    names = add_quantizers(model, config, ctx, learn)
    set_ranges(model, names, config, ctx)
    model.train(was_training)


def add_quantizers(model: nn.Module, config: QuantConfig, ctx: Context, learn: str) -> list[str]:
    """Equalise `model`, in eval mode, and add quantisers that are not calibrated yet; returns what was given some."""
    plan = quant_plan(model, config, ctx)
    names = plan.done
    attentions = set(attention_modules(model))
    layers = [name for name in names if name not in attentions]
    if not names:
        raise InputError("quantisation: no layer is left to quantise; see `vitcompress plan` for the reasons")
    outliers: list[str] = []
    if config.equalize:
        linears = [name for name in layers if isinstance(model.get_submodule(name), nn.Linear)]
        outliers = _equalize(model, linears, config, ctx)
    bits: dict[str, Any] = {"weight_bits": config.weight_bits, "learn": learn}
    if layers:
        weight_only = {*outliers} if config.first_and_last else {*outliers, *plan.edge}
        specs = {name: bits | {"activation_bits": config.input_bits(name, name in weight_only)} for name in layers}
        _group(model, specs, config.weight_group_size, ctx)
        ctx.edit(model, {"op": "quantize", "layers": specs})
    if len(layers) < len(names):
        products = [name for name in names if name in attentions]
        ctx.edit(
            model,
            {"op": "quantize_matmul", "layers": products, "activation_bits": config.activation_bits, "learn": learn},
        )
    return names


def set_ranges(model: nn.Module, names: list[str], config: QuantConfig, ctx: Context) -> None:
    """Calibrate the quantisers of `names`, centre inputs and correct biases."""
    images = _images(config, ctx)
    found = calibrate(model, images, images.count, config, lambda shifts: _shift(model, shifts, ctx))
    ctx.log(
        "calibrated",
        f"calibrated {len(names)} layers by {config.calibration}; centred {len(found.shifts)} inputs, "
        f"corrected {found.corrected} biases",
        shifts=found.shifts,
    )


def _group(model: nn.Module, specs: dict[str, dict[str, Any]], size: int | None, ctx: Context) -> None:
    """Give the linear layers whose K allows it groups of `size`; the others are logged."""
    for name, spec in specs.items() if size is not None else ():
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear) and layer.in_features % (size or 1) == 0 and layer.in_features != size:
            spec["weight_group_size"] = size
        else:
            ctx.log(
                "ungrouped", f"{name}: one scale per channel: no linear layer whose K is a larger multiple of {size}"
            )


def _shift(model: nn.Module, shifts: dict[str, float], ctx: Context) -> None:
    """Subtract a constant from the inputs of these layers, through the record of edits."""
    ctx.edit(model, {"op": "shift_input", "layers": list(shifts)})
    for name, value in shifts.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, CompressedLinear) and layer.input_shift is not None
        layer.input_shift.fill_(value)


def _images(config: QuantConfig, ctx: Context) -> CalibrationImages:
    return CalibrationImages(ctx, config.images or ctx.recipe.data.calibration_images)


def _equalize(model: nn.Module, layers: list[str], config: QuantConfig, ctx: Context) -> list[str]:
    """Equalise; returns the layers whose input no factor makes fit for integers."""
    images = _images(config, ctx)
    grid = Grid(config.weight_bits, config.activation_bits, config.weight_group_size or 0)
    found = equalize(model, layers, images, images.count, grid)
    outliers = found.outliers(config.outlier_ratio)
    inserted = {name: factor for name, factor in found.inserted.items() if name not in outliers}
    if inserted:
        ctx.edit(model, {"op": "scale_input", "layers": list(inserted)})
    for name, factor in inserted.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, CompressedLinear) and layer.input_factor is not None
        layer.input_factor.copy_(factor)
        layer.weight.data.div_(factor)
    ctx.log(
        "equalized",
        f"equalised {len(found.folded)} inputs at no cost, {len(inserted)} by a multiplication",
        folded=found.folded,
        inserted=list(inserted),
    )
    for name in outliers:
        ctx.log("outlier", f"{name}: {OUTLIER}", name=name)
    for name, reason in found.undone:
        ctx.log("equalize_undone", f"not equalised: {name}: {reason}")
    return outliers


def partly_quantized(model: nn.Module, config: QuantConfig, ctx: Context) -> list[LayerLeft]:
    """Layers with an integer weight whose input stays in floating point."""
    edge = quant_plan(model, config, ctx).edge
    names = [name for name, layer in quantized_layers(model) if layer.input_quantizer is None]
    rest = OUTLIER if config.activation_bits else WEIGHT_ONLY
    return [LayerLeft(name, EDGE if name in edge else rest) for name in names]


def quant_invariants(model: nn.Module, layers: list[str] | None = None) -> list[Invariant]:
    """Scales are positive and finite, and every quantised layer still has its quantisers."""
    bad = []
    for name, layer in quantized_layers(model):
        for part, quantizer in (("weight", layer.weight_quantizer), ("input", layer.input_quantizer)):
            if quantizer is None:
                continue
            scale = quantizer.scale.detach()
            if not bool(scale.isfinite().all()) or not bool((scale > 0).all()):
                bad.append(f"{name}: {part} scale is not positive and finite")
            elif not quantizer.enabled:
                bad.append(f"{name}: {part} quantiser is switched off")
    return [Invariant("symmetric integer ranges", not bad, "; ".join(bad))]
