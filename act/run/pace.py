"""How long training will take, from a few timed steps of the model as it is before compression."""

from __future__ import annotations

import copy
import itertools
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from torch import nn

from act.context import Context
from act.errors import InputError
from act.recipe.schema import TrainConfig
from act.run.keys import chain_key
from act.run.large_pages import large_pages
from act.run.learning import objectives_of, teachers_of
from act.run.ranks import state
from act.train.recover import recover

if TYPE_CHECKING:
    from act.plan import Plan, Stage

WARM, TIMED = 1, 4  # steps that are not timed, and those whose median counts


@dataclass(frozen=True)
class Pace:
    """The training of one stage, estimated. `hours` is None where the number of steps is unknown."""

    step_seconds: float
    images_per_second: float
    hours: float | None


@large_pages()
def measure_paces(plan: Plan, model: nn.Module) -> list[Pace | None]:
    """The pace of each of the plan's stages, None for one that does not train; `model` is left unchanged.

    An estimate: steps of the dense model with the stage's loss, batch, precision and optimiser, on the device of a run
    and with its images. Preparation, evaluation, and what masks and quantisers add to a step are not in it.

    Raises:
        InputError: no images to train on, or ones without the labels that the loss needs.
    """
    if any(entry.stage.train is not None for entry in plan.stages) and plan.data is None:
        raise InputError("data.train: missing; --time runs a few training steps and needs images")
    original = copy.deepcopy(model).eval().requires_grad_(False).to(state().device)
    ctx = Context(plan.recipe, plan.input_size, plan.data, state().device)
    measured: dict[str, float] = {}
    paces: list[Pace | None] = []
    for entry in plan.stages:
        train = entry.stage.train
        if train is None:
            paces.append(None)
            continue
        probe = TrainConfig(
            train_iter=WARM + TIMED,
            logging_iter=1,
            batch_size=train.batch_size or plan.recipe.data.batch_size,
            accumulation=train.accumulation,
            amp=train.amp,
            optimizer=train.optimizer,
            ema_decay=train.ema_decay,
        )
        key = chain_key(probe)  # the loss is the same in every stage
        if key not in measured:
            measured[key] = _step_seconds(entry.stage, probe, original, ctx)
        seconds = measured[key]
        images = (probe.batch_size or 0) * probe.accumulation
        hours = None if entry.steps is None else entry.steps * seconds / 3600
        paces.append(Pace(seconds, images / seconds, hours))
    return paces


def _step_seconds(stage: Stage, probe: TrainConfig, original: nn.Module, ctx: Context) -> float:
    """Median seconds of an optimiser step of a copy of `original`, loading its images included."""
    stamps: list[float] = []

    def stamp(event: str, message: str = "", **fields: Any) -> None:
        if event == "train_step":
            stamps.append(perf_counter())

    ctx.log = stamp
    student = copy.deepcopy(original).requires_grad_(True)
    objectives = objectives_of(stage, student, teachers_of(stage, original, ctx.device, {}), ctx)
    try:
        with tempfile.TemporaryDirectory() as folder:
            recover(student, None, objectives, probe, ctx, Path(folder))
    finally:
        for objective in objectives:
            objective.close()
    return statistics.median(after - before for before, after in itertools.pairwise(stamps[WARM - 1 :]))
