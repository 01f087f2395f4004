"""Structured pruning of a whole model, from calibration images to the smaller model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from act.analysis import analyze
from act.calibration import CalibrationImages
from act.errors import InputError
from act.sparsity.walk import refit_layers
from act.structure.allocate import allocate
from act.structure.cost import full_size, mac_rates, param_rates
from act.structure.curves import OutputLoss
from act.structure.importance import NEEDS_GRADIENTS
from act.structure.latency import latency_table, time_models
from act.structure.planner import Cost, Space, measured_losses, options, scored_losses, uniform
from act.structure.reducer import Reducer, Size
from act.structure.shrink import set_tensors, shrink_edit
from act.structure.statistics import gather
from act.structure.units import Found
from act.structure.width import channel_scores, kept_channels, residual_stream

MARGIN = 0.97  # of a latency goal: what is timed again at the end varies by a few percent

if TYPE_CHECKING:
    from act.context import Context


def prune_structure(
    model: nn.Module, dense: nn.Module, config: Any, find: Callable[[nn.Module], Found], ctx: Context
) -> None:
    """Shrink `model` in place, in `config.rounds` steps, through recorded edits; `dense` is the original.

    `find` gives the groups that may shrink.
    """
    images = CalibrationImages(ctx, config.images)
    original, base = dense, None
    if config.width < 1:
        base = _measured(config, dense, dense, ctx)[0]
        _narrow(model, dense, config, images, ctx)
        dense = copy.deepcopy(model)  # what is refitted later is compared at the new width
    found, space = find(dense), Space(config.units, config.align)
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


def _narrow(model: nn.Module, dense: nn.Module, config: Any, images: CalibrationImages, ctx: Context) -> None:
    """Cut the residual stream of `model` to the channels worth most, and fit what reads them to `dense`."""
    stream = residual_stream(model, ctx.input_size)
    if isinstance(stream, str):
        raise InputError(f"TransformerPrune.width: this model cannot be narrowed: {stream}; leave width at 1")
    width = max(config.align, round(config.width * stream.size / config.align) * config.align)
    kept = channel_scores(model, stream, images).argsort()[-width:].sort().values
    tensors = kept_channels(model, stream, kept)
    ctx.edit(model, {"op": "narrow", "width": width})
    set_tensors(model, tensors)
    ctx.log("prune", f"residual stream: {stream.size} -> {width} channels")
    if config.refit:
        called = {product.module for product in analyze(model, ctx.input_size).products}
        refit_layers(dense, model, [n for n in stream.readers if n in called], lambda: iter(images), config.damping)


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
    stats = gather(model, found.groups, images, config.criterion in NEEDS_GRADIENTS, ctx.recipe.seed)
    reducer = Reducer(model, found, stats, config.criterion, config.refit)
    now = {group.name: full_size(group) for group in found.groups}
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


def _output_loss(model: nn.Module, config: Any, found: Found, ctx: Context) -> OutputLoss:
    batches: list[Tensor] = list(CalibrationImages(ctx, config.loss_images))
    return OutputLoss(model, [group.reader for group in found.groups], torch.cat(batches))


def _shown(size: Size) -> str:
    return f"{size[0]} hidden" if len(size) == 1 else f"{size[0]} heads of {size[1]} (q, k) and {size[2]} (v)"
