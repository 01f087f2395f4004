"""Structured pruning of a whole model, from calibration images to the smaller model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from act.calibration import CalibrationImages
from act.sparsity.walk import refit_layers
from act.structure.allocate import allocate
from act.structure.cost import full_size, mac_rates, param_rates
from act.structure.curves import OutputLoss
from act.structure.importance import NEEDS_GRADIENTS
from act.structure.planner import Cost, Space, measured_losses, options, scored_losses, uniform
from act.structure.reducer import Reducer, Size
from act.structure.shrink import set_tensors
from act.structure.statistics import gather
from act.structure.units import Found

if TYPE_CHECKING:
    from act.context import Context


def prune_structure(
    model: nn.Module, dense: nn.Module, config: Any, find: Callable[[nn.Module], Found], ctx: Context
) -> dict[str, Any]:
    """Shrink `model` in place, in `config.rounds` steps, through recorded edits; `dense` is the original.

    `find` gives the groups that may shrink. Returns what was removed, for the report.
    """
    images = CalibrationImages(ctx, config.images)
    _, before = _rates(config, dense, find(dense), ctx)
    for number in range(1, config.rounds + 1):
        goal = before * (1 - config.pruned_ratio * number / config.rounds)
        _round(model, dense, config, find(model), images, goal, ctx)
        if config.refit:
            readers = [group.reader for group in find(model).groups]
            refit_layers(dense, model, readers, lambda: iter(images), config.damping)
    _, after = _rates(config, model, find(model), ctx)
    ctx.log("prune", f"{config.of} {before:,.0f} -> {after:,.0f} ({100 * (1 - after / before):.1f} % removed)")
    return {"of": config.of, "before": before, "after": after}


def _rates(config: Any, model: nn.Module, found: Found, ctx: Context) -> tuple[Cost, float]:
    """The cost of a group at a size, and that of the whole model."""
    rates, total = mac_rates(model, found, ctx.input_size) if config.of == "macs" else param_rates(model, found)
    return (lambda name, size: rates[name].cost(size)), float(total)


def _round(
    model: nn.Module, dense: nn.Module, config: Any, found: Found, images: CalibrationImages, goal: float, ctx: Context
) -> None:
    """Shrink until the whole costs at most `goal`."""
    stats = gather(model, found.groups, images, config.criterion in NEEDS_GRADIENTS, ctx.recipe.seed)
    reducer = Reducer(model, found, stats, config.criterion, config.refit)
    space = Space(config.units, config.align)
    cost, total = _rates(config, model, found, ctx)
    now = {group.name: full_size(group) for group in found.groups}
    budget = goal - (total - sum(cost(name, size) for name, size in now.items()))
    if config.allocation == "uniform":
        sizes = uniform(space, found.groups, cost, budget)
    else:
        losses = (
            measured_losses(
                space, reducer, _output_loss(model, config, found, ctx), lambda line: ctx.log("prune", line)
            )
            if config.allocation == "measured"
            else scored_losses(space, reducer)
        )
        sizes = allocate(options(space, found.groups, losses, cost), budget)
    changed = {name: size for name, size in sizes.items() if size != now[name]}
    tensors = reducer.tensors(changed)
    ctx.edit(model, shrink_edit(changed))
    set_tensors(model, tensors)
    for name, size in sizes.items():
        ctx.log("prune", f"{name}: {_shown(now[name])} -> {_shown(size)}")


def shrink_edit(sizes: dict[str, Size]) -> dict[str, Any]:
    """The edit that cuts the named groups to those sizes."""
    attention = {n: {"heads": s[0], "qk": s[1], "v": s[2]} for n, s in sizes.items() if len(s) == 3}
    return {"op": "shrink", "attention": attention, "mlp": {n: s[0] for n, s in sizes.items() if len(s) == 1}}


def _output_loss(model: nn.Module, config: Any, found: Found, ctx: Context) -> OutputLoss:
    batches: list[Tensor] = list(CalibrationImages(ctx, config.loss_images))
    return OutputLoss(model, [group.reader for group in found.groups], torch.cat(batches))


def _shown(size: Size) -> str:
    return f"{size[0]} hidden" if len(size) == 1 else f"{size[0]} heads of {size[1]} (q, k) and {size[2]} (v)"
