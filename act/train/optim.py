"""Optimiser and learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import timm.optim
import torch
from torch import nn

from act.errors import InputError
from act.recipe.schema import TrainConfig


def parameter_groups(
    model: nn.Module, extra: Iterable[nn.Parameter], ranges: Iterable[nn.Parameter], cfg: TrainConfig
) -> list[dict[str, Any]]:
    """Disjoint groups of everything that trains, each with a `name`, its learning rate and weight decay.

    `decay`: matrices and kernels of the model, and of the objectives (`extra`). `no_decay`: norms, biases and other
    1-D parameters, and what the model's own `no_weight_decay()` names (timm: position embeddings and tokens).
    `ranges`: learned clips and steps, with `range_learning_rate` and `range_weight_decay`.
    """
    own = {id(parameter): parameter for parameter in ranges if parameter.requires_grad}
    named_by_model: Any = getattr(model, "no_weight_decay", None)
    spared = set(named_by_model()) if callable(named_by_model) else set()
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    seen: set[int] = set()
    named = list(model.named_parameters()) + [("", parameter) for parameter in extra]
    for name, parameter in named:
        if not parameter.requires_grad or id(parameter) in own or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        (no_decay if parameter.ndim <= 1 or name in spared else decay).append(parameter)
    rate, range_rate = cfg.learning_rate, cfg.range_learning_rate
    groups: list[dict[str, Any]] = [
        {"name": "decay", "params": decay, "lr": rate, "weight_decay": cfg.weight_decay},
        {"name": "no_decay", "params": no_decay, "lr": rate, "weight_decay": 0.0},
        {
            "name": "ranges",
            "params": list(own.values()),
            "lr": rate if range_rate is None else range_rate,
            "weight_decay": cfg.range_weight_decay,
        },
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise InputError("model: none of its parameters requires a gradient; there is nothing to train")
    return groups


def make_optimizer(groups: list[dict[str, Any]], cfg: TrainConfig) -> torch.optim.Optimizer:
    """A timm optimiser over `parameter_groups`; each group remembers its full rate as `initial_lr`."""
    for group in groups:
        group["initial_lr"] = group["lr"]
    try:
        optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
            groups, opt=cfg.optimizer, lr=cfg.learning_rate, weight_decay=cfg.weight_decay
        )
    except (ValueError, TypeError, ImportError, AssertionError) as error:
        raise InputError(f"TrainConfig.optimizer: {cfg.optimizer}: {error}") from error
    return optimizer


def schedule_factor(step: int, steps: int, cfg: TrainConfig) -> float:
    """What optimiser step `step` (1-based, of `steps`) uses of the full learning rate, in (0, 1].

    The rate rises linearly to 1 over `warmup_iter` steps (first step: 1 / (warmup_iter + 1)), then falls from 1 by
    half a cosine (arXiv 1608.03983) or a line, which would touch min_learning_rate / learning_rate one step after
    the last, so that no step is wasted on a rate of zero. `constant` stays at 1.
    """
    warmup = min(cfg.warmup_iter, steps)
    if step <= warmup:
        return step / (warmup + 1)
    floor = cfg.min_learning_rate / cfg.learning_rate
    done = (step - 1 - warmup) / (steps - warmup)
    if cfg.scheduler == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
    if cfg.scheduler == "linear":
        return floor + (1 - floor) * (1 - done)
    return 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to `factor` times its full rate; returns the first group's. A pure function of the step, so
    that a resumed run needs no scheduler state."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float | None) -> float:
    """Clip the gradients to a global norm of `limit` (None: only measure) and return the largest norm found.

    Learned ranges are clipped apart from the weights: the gradient of a clip is a sum over a whole tensor, and in one
    norm with the weights it would scale their steps down to nothing.
    """
    weights = [p for group in optimizer.param_groups if group.get("name") != "ranges" for p in group["params"]]
    ranges = [p for group in optimizer.param_groups if group.get("name") == "ranges" for p in group["params"]]
    norms = []
    for parameters in (weights, ranges):
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            continue
        norm = torch.nn.utils.get_total_norm(gradients)
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        norms.append(norm)
    # max() over Python floats would hide a NaN that comes second.
    return float(torch.stack(norms).max()) if norms else 0.0
