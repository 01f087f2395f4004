"""The layers that a treatment costs most: what a run that lost too much returns to a higher precision."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from act.calibration import CalibrationImages
from act.layers import compressible
from act.quant.config import QuantConfig
from act.quant.fake_quant import WIDE_BITS
from act.sensitivity.choose import choose_treatments
from act.sensitivity.measure import Step, measure_sensitivity

if TYPE_CHECKING:
    from act.context import Context

IMAGES = 64


def worst_layers(model: nn.Module, ctx: Context, family: str, share: float, excluded: list[str]) -> list[str]:
    """The `share` of the layers, one at least, that cost the output of `model` most under a treatment of `family`
    (see `choose_treatments`), worst first; those in `excluded`, and none that costs nothing."""

    def show(step: Step) -> None:
        if step.units and step.done == step.units:
            ctx.log("sensitivity", f"measured what {step.treatment} costs each of {step.units} layers")

    treatments = choose_treatments(ctx, [family], IMAGES, share)
    found = measure_sensitivity(model, CalibrationImages(ctx, IMAGES), treatments, show)
    costs = sorted((c for c in found.costs if c.kl > 0 and c.layer not in excluded), key=lambda c: -c.kl)
    worst = costs[: math.ceil(share * len(costs))]
    ctx.log("sensitive", layers={cost.layer: cost.kl for cost in worst})
    return [cost.layer for cost in worst]


def excluding_worst(config: Any, model: nn.Module, ctx: Context, family: str, share: float) -> tuple[Any, str] | None:
    """`config` with the worst layers added to its `exclude`, and which, in words; None if there are none."""
    worst = worst_layers(model, ctx, family, share, list(config.exclude))
    if not worst:
        return None
    return replace(config, exclude=[*config.exclude, *worst]), f"without {', '.join(worst)}, which cost most"


def returning_precision(config: QuantConfig, model: nn.Module, ctx: Context, share: float) -> tuple[Any, str] | None:
    """`config` of a quantisation with more precision for the worst layers, and how, in words; None if there are none.

    Their inputs get 16 bits, which stay integer products; where those would not help or not run, the layers are left
    out, as the products of an attention always are.
    """
    worst = worst_layers(model, ctx, "quantization", share, [*config.exclude, *config.wide_inputs])
    if not worst:
        return None
    wide: list[str] = []
    tensorrt = "tensorrt" in ctx.recipe.export.formats
    if config.activation_bits not in (0, WIDE_BITS) and config.weight_bits == 8 and not tensorrt:
        wide = [name for name in worst if compressible(model.get_submodule(name))]
    out = [name for name in worst if name not in wide]
    done = [f"16-bit inputs for {', '.join(wide)}"] * bool(wide) + [f"without {', '.join(out)}"] * bool(out)
    milder = replace(config, wide_inputs=[*config.wide_inputs, *wide], exclude=[*config.exclude, *out])
    return milder, f"{' and '.join(done)}, which cost most"
