"""What a stage learns from: its teachers, its loss terms, and what an earlier stage says about their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from act.context import Context
from act.distill.objective import DistillObjective
from act.distill.weights import unweighted
from act.models import load_model
from act.plan import Stage
from act.run.keys import chain_key
from act.strategies.base import Objective, Strategy
from act.strategies.distillation import SPARSE_AWARE, Distillation
from act.train.task import TaskLoss


def teachers_of(
    stage: Stage, original: nn.Module, device: torch.device, loaded: dict[str, list[nn.Module]]
) -> list[nn.Module]:
    """The models a stage learns from: those its Distillation names, else the original; none without Distillation.

    `loaded` keeps what was loaded before, by the hash of its sources.
    """
    found: list[nn.Module] = []
    for objective in stage.objectives:
        sources = _distillation(objective).teacher_sources()
        key = chain_key(sources)
        if key not in loaded:
            models = [load_model(source).eval().requires_grad_(False).to(device) for source in sources]
            loaded[key] = models or [original]
        found += loaded[key]
    return found


def objectives_of(
    stage: Stage,
    model: nn.Module,
    teachers: list[nn.Module],
    ctx: Context,
    feature_loss: Mapping[str, float] | None = None,
) -> list[Objective]:
    """The stage's Distillation, else the labels; `feature_loss` is what `carried` found."""
    if not stage.objectives:
        return [TaskLoss()]
    return [_distillation(objective).objective(model, teachers, ctx, feature_loss) for objective in stage.objectives]


def carried(stage: Stage, records: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """The feature loss by layer that the last of the earlier stages' report entries has, where `stage` asks for it."""
    if not any(_distillation(objective).config.layer_weights == SPARSE_AWARE for objective in stage.objectives):
        return None
    return next((dict(entry["feature_loss"]) for entry in reversed(records) if "feature_loss" in entry), None)


def learned(objectives: Sequence[Objective], losses: Mapping[str, float]) -> dict[str, Any]:
    """A stage's report entry on its features, from the mean loss terms of its last steps.

    `feature_loss`: unweighted, by layer; `layer_weights`: what each layer's weight was multiplied by. Each is left out
    where there is none.
    """
    entry: dict[str, Any] = {}
    for objective in objectives:
        if isinstance(objective, DistillObjective):
            entry["feature_loss"] = unweighted(losses, objective.feature_weights())
            entry["layer_weights"] = objective.layer_weights
    return {key: value for key, value in entry.items() if value}


def _distillation(strategy: Strategy) -> Distillation:
    """`strategy` as the one objective strategy there is."""
    assert isinstance(strategy, Distillation)
    return strategy
