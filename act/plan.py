"""The composed pipeline of a recipe: which stages, in which order, and what each will touch. Nothing heavy runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from act.automatic import Automatic, choose_strategies
from act.context import Context
from act.errors import InputError
from act.estimate import Memory, estimate_memory, run_once
from act.recipe.load import stage_train_config, training_stages
from act.recipe.references import model_configs
from act.recipe.schema import Recipe, TrainConfig
from act.selection import unmatched_globs
from act.strategies.base import LayerPlan, Phase, Strategy, load_strategies

if TYPE_CHECKING:
    from act.data.bundle import DataBundle


@dataclass(frozen=True)
class Stage:
    """One stage: a strategy, and how the model recovers after it. `index` counts from 1; `train` is None where the
    strategy does not train; `objectives` holds Distillation, or nothing (then the labels are the objective)."""

    index: int
    name: str
    strategy: Strategy
    train: TrainConfig | None
    objectives: list[Strategy]


@dataclass(frozen=True)
class StagePlan:
    """What one stage will do. `steps` is None when it does not train or `length` says why it is unknown."""

    stage: Stage
    layers: LayerPlan
    steps: int | None
    length: str
    memory: Memory


@dataclass
class Plan:
    """The whole pipeline. `train_images`, `labelled` and `data` are None where there are no training images."""

    recipe: Recipe
    stages: list[StagePlan]
    parameters: int
    input_size: tuple[int, int, int]
    chosen: Automatic | None = None  # where the recipe names no strategy
    train_images: int | None = None
    labelled: bool | None = None
    data: DataBundle | None = None
    warnings: list[str] = field(default_factory=list)


def build_stages(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe: structure, sparsity, quantisation, whatever their order in the file.

    Distillation is how every stage that trains recovers; where no other stage trains it is a stage of its own, the
    first.

    Raises:
        InputError: the recipe names no strategy.
    """
    registry = load_strategies()
    strategies = {name: cls(recipe.strategies[name]) for name, cls in registry.items() if name in recipe.strategies}
    if not strategies:
        raise InputError(
            f"{recipe.name}: names no strategy; add a section, e.g. `QuantPost: {{}}`; known: {', '.join(registry)}"
        )
    objectives = [strategy for strategy in strategies.values() if strategy.phase is Phase.OBJECTIVE]
    order = sorted(
        (strategy for strategy in strategies.values() if strategy.phase is not Phase.OBJECTIVE),
        key=lambda strategy: (strategy.phase, strategy.name),
    )
    trains = training_stages(list(strategies), registry)
    if any(objective.name in trains for objective in objectives):
        order = [*objectives, *order]
    return [
        Stage(
            index,
            stage_name(strategy.name),
            strategy,
            stage_train_config(recipe, strategy.name) if strategy.name in trains else None,
            objectives if strategy.name in trains else [],
        )
        for index, strategy in enumerate(order, 1)
    ]


def stage_name(strategy: str) -> str:
    """A strategy's name as the name of its stage and folder: QuantAware -> quant_aware."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", strategy).lower()


def make_plan(recipe: Recipe, model: nn.Module) -> Plan:
    """What each stage of `recipe` will do to `model`, which is left unchanged.

    Raises:
        InputError: every contradiction between recipe, model and data that shows without running anything.
    """
    from act.data.preprocess import resolve_preprocess

    problems: list[str] = []
    preprocess = resolve_preprocess(model, recipe.data)
    run_once(model, preprocess.input_size, [])  # a model that does not take these images is the first thing to say
    data: DataBundle | None = None
    if recipe.data.train is not None or recipe.data.val is not None:
        from act.data.bundle import DataBundle

        try:
            data = DataBundle(recipe.data, preprocess, recipe.seed)
        except InputError as error:
            problems += error.problems
    try:
        chosen = choose_strategies(recipe, model, data, preprocess.input_size)
    except InputError as error:
        raise InputError(problems or error.problems) from error
    recipe = recipe if chosen is None else chosen.recipe
    stages = build_stages(recipe)
    ctx = Context(recipe, preprocess.input_size)
    plan = Plan(recipe, [], sum(p.numel() for p in model.parameters()), preprocess.input_size, chosen)
    if data is not None:
        plan.warnings += data.notes
    if data is not None and data.has_train:
        plan.train_images, plan.labelled, plan.data = data.train_images, data.labelled, data
    for stage in stages:
        try:
            for objective in stage.objectives:
                if objective is not stage.strategy:
                    objective.select(model, ctx)
            layers = stage.strategy.select(model, ctx)
            problems += unmatched_globs(stage.strategy.name, stage.strategy.config, layers)
            steps, length = _steps(recipe, stage, data)
            memory = estimate_memory(
                model, preprocess.input_size, stage.train, recipe.data.batch_size, stage.objectives
            )
            plan.stages.append(StagePlan(stage, layers, steps, length, memory))
        except InputError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise InputError(problems)
    plan.warnings += _warnings(plan)
    return plan


def teachers(recipe: Recipe) -> Iterator[str]:
    """Dotted keys of the models, other than the one to compress, that a recipe names."""
    return (key for key, _ in model_configs(recipe) if key != "model")


def _steps(recipe: Recipe, stage: Stage, data: DataBundle | None) -> tuple[int | None, str]:
    from act.train.recover import total_steps
    from act.train.stream import batches_per_epoch

    if stage.train is None:
        return None, "does not train"
    if stage.train.train_iter is not None:
        return stage.train.train_iter, "train_iter"
    if data is None or not data.has_train:
        return None, "unknown: no data"
    batches = batches_per_epoch(data.train_loader(stage.train.batch_size or recipe.data.batch_size))
    if batches is None:
        return None, "unknown: the data have no length"
    epochs = stage.train.epochs or 1
    return total_steps(stage.train, batches), f"{epochs} epoch{'s' if epochs > 1 else ''}"


def _warnings(plan: Plan) -> list[str]:
    found = []
    names = [entry.stage.name for entry in plan.stages if entry.stage.train is not None]
    data = plan.recipe.data
    if names and data.train is None:
        found.append(f"data.train: not given; {', '.join(names)} cannot train without images (labels are optional)")
    for entry in plan.stages:
        stage = entry.stage
        if stage.train is not None and not stage.objectives and plan.labelled is False:
            found.append(
                f"{stage.strategy.name}: the images have no labels and there is no Distillation, so nothing to learn "
                "from; add `Distillation: {}`, or give labelled images in data.train"
            )
        found += stage.strategy.remarks()
        if not entry.layers.done and stage.strategy.phase is not Phase.OBJECTIVE:
            found.append(f"{stage.strategy.name}: no layer of this model is eligible; see the reasons")
        if stage.train is not None and stage.train.eval_iter is not None and data.val is None:
            found.append(f"TrainConfig.eval_iter: nothing to evaluate {stage.name} with; give data.val")
        if stage.strategy.phase is Phase.OBJECTIVE and not any(True for _ in teachers(plan.recipe)):
            found.append(
                f"{stage.strategy.name}: the teacher is the model itself, so there is nothing to learn; name a teacher"
            )
    distillation = plan.recipe.strategies.get("Distillation")
    if distillation is not None and distillation.layer_weights == "sparse_aware" and len(names) < 2:
        found.append(
            "Distillation.layer_weights: sparse_aware takes the weights from an earlier stage that trained; this "
            "recipe trains in one stage only, where layers weigh the same"
        )
    if data.val is None:
        found.append("data.val: not given; the compressed model will not be scored")
    return found
