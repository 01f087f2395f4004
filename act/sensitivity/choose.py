"""The treatments that a recipe speaks of, with defaults for those it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from act.context import Context
from act.quant.config import QuantConfig
from act.sensitivity.structure import Structure
from act.sensitivity.treatments import Quantization, Sparsity, Treatment
from act.strategies.prune import PruneConfig

FAMILIES = ("sparsity", "quantization", "weights", "structure")
_GROUP = 32  # of the 4-bit weights, where the recipe gives none


def choose_treatments(ctx: Context, families: Sequence[str], images: int, share: float) -> list[Treatment]:
    """Treatments of the named families, with the settings of the context's recipe where it has the strategy.

    `sparsity`: Prune's pattern and layers, by magnitude. `quantization`: QuantAware's or QuantPost's. `weights`: 4 bits
    per weight. `structure`: `share` of the units of each group. `images`: calibration images.
    """
    own = ctx.recipe.strategies
    quant: QuantConfig = replace(own.get("QuantAware") or own.get("QuantPost") or QuantConfig(), images=images)
    weights = replace(
        quant,
        weight_bits=4,
        activation_bits=0,
        wide_inputs=[],
        weight_group_size=quant.weight_group_size or _GROUP,
        quantize_op_types=[op for op in quant.quantize_op_types if op != "matmul"] or ["linear"],
    )
    made: dict[str, Treatment] = {
        "sparsity": Sparsity(own.get("Prune") or PruneConfig(), ctx),
        "quantization": Quantization(quant, ctx),
        "weights": Quantization(weights, ctx),
        "structure": Structure(share, ctx.input_size),
    }
    # A recipe may ask for 4-bit weights itself: one measurement of them is enough.
    return list({made[family].name: made[family] for family in FAMILIES if family in families}.values())
