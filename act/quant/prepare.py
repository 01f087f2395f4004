"""From a floating-point model to a calibrated, fake-quantised one: shared by QuantAware and QuantPost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from act.calibration import calibration_images
from act.errors import InputError
from act.quant.calibrate import calibrate, correct_biases, quantized_layers
from act.quant.config import QuantConfig, op_type
from act.quant.equalize import equalize
from act.quant.matmul import attention_modules, quantize_matmuls
from act.selection import select_layers
from act.strategies.base import Invariant, LayerLeft, LayerPlan

if TYPE_CHECKING:
    from act.context import Context

__all__ = ["prepare_quantized", "quant_invariants", "quant_plan", "quantize_matmuls"]


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
    if "matmul" in config.quantize_op_types:
        plan.done += attentions
    else:
        plan.left += [LayerLeft(name, "attention products: matmul is not in quantize_op_types") for name in attentions]
    return plan


def prepare_quantized(model: nn.Module, config: QuantConfig, ctx: Context, learn: str) -> None:
    """Equalise, add quantisers (through `ctx.edit`), calibrate, correct biases. `learn`: fixed, pact or lsq."""
    names = quant_plan(model, config, ctx).done
    attentions = set(attention_modules(model))
    layers = [name for name in names if name not in attentions]
    if not names:
        raise InputError("quantisation: no layer is left to quantise; see `vitcompress plan` for the reasons")
    images = calibration_images(ctx, config.images or ctx.recipe.data.calibration_images)
    was_training = model.training
    model.eval()
    if config.equalize:
        done, undone = equalize(model, images, config.equalize)
        ctx.log("equalize", f"equalised {len(done)} activations before quantisation", folds=[f.producer for f in done])
        for fold, reason in undone:
            ctx.log("equalize_undone", f"not equalised: {fold.producer}: {reason}")
    bits = {"weight_bits": config.weight_bits, "activation_bits": config.activation_bits, "learn": learn}
    if layers:
        ctx.edit(model, {"op": "quantize", "layers": {name: dict[str, Any](bits) for name in layers}})
    if len(layers) < len(names):
        products = [name for name in names if name in attentions]
        ctx.edit(
            model,
            {"op": "quantize_matmul", "layers": products, "activation_bits": config.activation_bits, "learn": learn},
        )
    calibrate(model, images, config)
    if config.bias_correction:
        count = correct_biases(model, images)
        ctx.log("bias_correction", f"corrected the biases of {count} layers")
    model.train(was_training)


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
