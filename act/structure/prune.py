"""Structured pruning of a whole model, from calibration images to the smaller model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from act.analysis import analyze
from act.calibration import CalibrationImages
from act.edits import apply_edit
from act.errors import InputError
from act.sparsity.walk import refit_layers
from act.structure.allocate import allocate
from act.structure.choose_width import SHARES, aligned_widths, best_width, narrow_model, narrowing_losses
from act.structure.cost import full_size, mac_rates, param_rates
from act.structure.curves import OutputLoss
from act.structure.importance import NEEDS_GRADIENTS
from act.structure.latency import latency_table, time_models
from act.structure.planner import Cost, Curve, Space, measured_losses, options, scored_losses, uniform
from act.structure.reducer import Reducer, Size
from act.structure.shrink import set_tensors, shrink_edit
from act.structure.statistics import gather
from act.structure.units import Found
from act.structure.width import residual_stream

MARGIN = 0.97  # of a latency goal: what is timed again at the end varies by a few percent

if TYPE_CHECKING:
    from act.context import Context


def prune_structure(
    model: nn.Module, dense: nn.Module, config: Any, find: Callable[[nn.Module], Found], ctx: Context
) -> None:
    """Shrink `model` in place, in `config.rounds` steps, through recorded edits; `dense` is the original.

    `find` gives the groups that may shrink.
    """
    images, space = CalibrationImages(ctx, config.images), Space(config.units, config.align)
    original, base = dense, None
    width = _width(dense, config, find, space, images, ctx)
    if width is not None:
        base = _measured(config, dense, dense, ctx)[0]
        narrow_model(model, dense, width, config, images, ctx)
        ctx.log("prune", f"residual stream: {width} channels are left")
        dense = copy.deepcopy(model)  # what is refitted later is compared at the new width
    found = find(dense)
    cost, total = _cost(config, dense, found, space, ctx)
    before = total if base is None else base
    ratio = config.pruned_ratio if config.pruned_ratio is not None else _asked(config.of, before, original, ctx)
    rest = ratio * before - (before - total)
    if rest <= 0:
        ctx.log("prune", f"nothing more to remove: {config.of} {total:,.6g} is within {(1 - ratio) * before:,.6g}")
        return
    whole = sum(cost(group.name, full_size(group)) for group in found.groups)
    for number in range(1, config.rounds + 1):
        budget = whole - rest * number / config.rounds
        _round(model, config, find(model), space, images, cost, budget, ctx)
        if config.refit:
            readers = [group.reader for group in find(model).groups]
            refit_layers(dense, model, readers, lambda: iter(images), config.damping)
    predicted = total - whole + sum(cost(group.name, full_size(group)) for group in find(model).groups)
    if predicted > (goal := (1 - ratio) * before) * 1.001:
        ctx.log(
            "warning",
            f"TransformerPrune: {config.of} falls to {predicted:,.6g} only, not to {goal:,.6g}: units "
            f"{', '.join(config.units)} in steps of align {config.align} give no more",
        )
    before, after = _measured(config, original, model, ctx)
    unit = " ms" if config.of == "latency" else ""
    ctx.log(
        "prune",
        f"{config.of} {before:,.6g}{unit} -> {after:,.6g}{unit} ({100 * (1 - after / before):.1f} % removed; predicted "
        f"{predicted:,.6g}{unit})",
        of=config.of,
        before=before,
        after=after,
        predicted=predicted,
    )


def _cost(config: Any, model: nn.Module, found: Found, space: Space, ctx: Context) -> tuple[Cost, float]:
    """The cost of a group at a size, less what no size changes, and that of the whole model."""
    if config.of == "latency":
        table = latency_table(model, found, space, ctx)
        return table.cost, table.total
    rates, total = mac_rates(model, found, ctx.input_size) if config.of == "macs" else param_rates(model, found)
    return (lambda name, size: rates[name].cost(size)), float(total)


def _asked(of: str, before: float, dense: nn.Module, ctx: Context) -> float:
    """The share to remove that the recipe's target asks for, given what the whole costs without pruning."""
    target = ctx.recipe.target
    if of == "macs" and target.macs is not None:
        return 1 - target.macs / before
    if of == "latency" and target.latency_ms is not None:
        return 1 - MARGIN * target.latency_ms / before
    if of == "latency" and target.speedup is not None:
        plain = dataclasses.replace(ctx, recipe=dataclasses.replace(ctx.recipe, strategies={}))
        original = time_models({"the original": dense}, plain)["the original"]
        return 1 - MARGIN * original / target.speedup / before
    raise InputError(
        f"TransformerPrune.pruned_ratio: none is given, and target has no goal for `of: {of}`; give a share, or "
        "target.macs with of: macs, or target.latency_ms or target.speedup with of: latency"
    )


def _measured(config: Any, dense: nn.Module, model: nn.Module, ctx: Context) -> tuple[float, float]:
    """What both models really cost; latencies are timed anew, in turns."""
    if config.of == "latency":
        times = time_models({"before": dense, "after": model}, ctx)
        return times["before"], times["after"]
    first, second = (analyze(item, ctx.input_size) for item in (dense, model))
    return (first.macs, second.macs) if config.of == "macs" else (first.params, second.params)


def _width(
    dense: nn.Module,
    config: Any,
    find: Callable[[nn.Module], Found],
    space: Space,
    images: CalibrationImages,
    ctx: Context,
) -> int | None:
    """Channels that the residual stream is cut to, None where it stays."""
    if config.width == 1:
        return None
    stream = residual_stream(dense, ctx.input_size)
    if isinstance(stream, str):
        if config.width is None:
            ctx.log("prune", f"the residual stream keeps its width: {stream}")
            return None
        raise InputError(f"TransformerPrune.width: this model cannot be narrowed: {stream}; leave width at 1")
    sizes = aligned_widths(stream.size, SHARES if config.width is None else (config.width,), config.align)
    if config.width is not None:
        return sizes[0]
    sizes, found = [stream.size, *sizes], find(dense)
    costs = _width_costs(dense, sizes, config, find, space, ctx)
    total = costs[stream.size][1]
    ratio = config.pruned_ratio if config.pruned_ratio is not None else _asked(config.of, total, dense, ctx)
    _, losses = _losses(dense, config, found, space, images, ctx)
    alone = narrowing_losses(dense, sizes, _output_loss(dense, config, found, ctx), config, images, ctx)
    best, expected = best_width(found.groups, space, losses, alone, costs, (1 - ratio) * total)
    for size, loss in expected.items():
        text = f"{costs[size][1]:,.6g} of {config.of}, costs {alone[size]:.4f} alone and {loss:.4f} in all"
        ctx.log("prune", f"width {size}: {text}{' (taken)' if size == best else ''}")
    return None if best == stream.size else best


def _width_costs(
    dense: nn.Module, sizes: list[int], config: Any, find: Callable[[nn.Module], Found], space: Space, ctx: Context
) -> dict[int, tuple[Cost, float]]:
    """The cost of a group at a size and of the whole, for every width."""
    costs: dict[int, tuple[Cost, float]] = {}
    if config.of == "latency":
        table = latency_table(dense, find(dense), space, ctx, sizes[1:])
        for size in sizes:
            # What a group saves at another width was not measured: taken to shrink as the whole does.
            whole = table.widths.get(size, table.total)
            costs[size] = (partial(_scaled, table.cost, whole / table.total), whole)
        return costs
    for size in sizes:
        twin = copy.deepcopy(dense)
        if size != sizes[0]:
            apply_edit(twin, {"op": "narrow", "width": size})
        costs[size] = _cost(config, twin, find(twin), space, ctx)
    return costs


def _scaled(cost: Cost, factor: float, name: str, size: Size) -> float:
    return cost(name, size) * factor


def _round(
    model: nn.Module,
    config: Any,
    found: Found,
    space: Space,
    images: CalibrationImages,
    cost: Cost,
    budget: float,
    ctx: Context,
) -> None:
    """Shrink until the costs of the groups sum up to `budget` at most."""
    now = {group.name: full_size(group) for group in found.groups}
    reducer, losses = _losses(model, config, found, space, images, ctx)
    if losses:
        sizes = allocate(options(space, found.groups, losses, cost), budget)
    else:
        sizes = uniform(space, found.groups, cost, budget)
    changed = {name: size for name, size in sizes.items() if size != now[name]}
    tensors = reducer.tensors(changed)
    ctx.edit(model, shrink_edit(changed))
    set_tensors(model, tensors)
    for name, size in sizes.items():
        ctx.log("prune", f"{name}: {_shown(now[name])} -> {_shown(size)}")


def _losses(
    model: nn.Module, config: Any, found: Found, space: Space, images: CalibrationImages, ctx: Context
) -> tuple[Reducer, dict[str, dict[str, Curve]]]:
    """What makes the groups of `model` smaller, and what every size costs; nothing for a uniform share."""
    stats = gather(model, found.groups, images, config.criterion in NEEDS_GRADIENTS, ctx.recipe.seed)
    reducer = Reducer(model, found, stats, config.criterion, config.refit)
    if config.allocation == "uniform":
        return reducer, {}
    if config.allocation == "global":
        return reducer, scored_losses(space, reducer)
    loss = _output_loss(model, config, found, ctx)
    return reducer, measured_losses(space, reducer, loss, lambda line: ctx.log("prune", line))


def _output_loss(model: nn.Module, config: Any, found: Found, ctx: Context) -> OutputLoss:
    batches: list[Tensor] = list(CalibrationImages(ctx, config.loss_images))
    return OutputLoss(model, [group.reader for group in found.groups], torch.cat(batches))


def _shown(size: Size) -> str:
    return f"{size[0]} hidden" if len(size) == 1 else f"{size[0]} heads of {size[1]} (q, k) and {size[2]} (v)"
