"""Which width of the residual stream to prune at, among a few: the one whose model then loses least for its cost."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from act.analysis import analyze
from act.sparsity.walk import refit_layers
from act.structure.allocate import allocate
from act.structure.cost import full_size
from act.structure.curves import OutputLoss
from act.structure.planner import Cost, Curve, Space, options
from act.structure.shrink import set_tensors
from act.structure.units import Group
from act.structure.width import channel_scores, kept_channels, residual_stream

if TYPE_CHECKING:
    from act.calibration import CalibrationImages
    from act.context import Context

SHARES = (0.875, 0.75, 0.625)  # of the present width


def aligned_widths(width: int, shares: Iterable[float], align: int) -> list[int]:
    """Shares of `width` as multiples of `align`, those below `width`."""
    sizes = (max(align, round(share * width / align) * align) for share in shares)
    return [size for size in dict.fromkeys(sizes) if size < width]


def narrow_model(
    model: nn.Module, dense: nn.Module, width: int, config: Any, images: CalibrationImages, ctx: Context
) -> None:
    """Cut the residual stream of `model` to the `width` channels worth most, and fit what reads them to `dense`."""
    stream = residual_stream(model)
    assert not isinstance(stream, str)
    kept = channel_scores(model, stream, images).argsort()[-width:].sort().values
    tensors = kept_channels(model, stream, kept)
    ctx.edit(model, {"op": "narrow", "width": width})
    set_tensors(model, tensors)
    if config.refit:
        called = {product.module for product in analyze(model, ctx.input_size).products}
        refit_layers(dense, model, [n for n in stream.readers if n in called], lambda: iter(images), config.damping)


def narrowing_losses(
    dense: nn.Module, sizes: Iterable[int], loss: OutputLoss, config: Any, images: CalibrationImages, ctx: Context
) -> dict[int, float]:
    """Nats that each width costs alone, what reads the stream being refitted; the first of `sizes` costs none."""
    found: dict[int, float] = {}
    for size in sizes:
        twin = copy.deepcopy(dense)
        if found:
            narrow_model(twin, dense, size, config, images, dataclasses.replace(ctx, edits=[]))
        found[size] = loss.of_model(twin) if found else 0.0
    return found


def best_width(
    groups: list[Group],
    space: Space,
    losses: dict[str, dict[str, Curve]],
    alone: dict[int, float],
    costs: dict[int, tuple[Cost, float]],
    goal: float,
) -> tuple[int, dict[int, float]]:
    """The width of least loss whose model can cost `goal` in all, and the loss of each: what the width costs alone
    plus what its groups then have to give up. `costs`: the cost of a group at a size, and of the whole, by width."""
    totals: dict[int, float] = {}
    for width, (cost, whole) in costs.items():
        units = sum(cost(group.name, full_size(group)) for group in groups)
        choices = options(space, groups, losses, cost)
        sizes = allocate(choices, units - max(0.0, whole - goal))
        taken = [next(o for o in choices[name] if o.size == size) for name, size in sizes.items()]
        reached = whole - units + sum(option.cost for option in taken) <= goal * 1.001
        totals[width] = alone[width] + sum(option.loss for option in taken) if reached else float("inf")
    return min(totals, key=lambda width: (totals[width], -width)), totals
