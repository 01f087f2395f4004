"""Recovery training: the one loop that every stage that trains runs through."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from act.context import Context
from act.data.batch import Batch
from act.errors import InputError
from act.recipe.schema import TrainConfig
from act.run.keys import train_part
from act.run.stop import StopAfterStep, Stopped
from act.strategies.base import Objective, Strategy
from act.train.attention import to_write_out, written_out
from act.train.check import train_problems
from act.train.guard import check_finite, training_fault
from act.train.laps import BACKWARD, IMAGES, UPDATE, Laps
from act.train.launch import any_process, close_trackers, make_accelerator, mean_over_processes
from act.train.optim import clip_gradients, make_optimizer, parameter_groups, schedule_factor, set_learning_rate
from act.train.progress import Bar, Meter, mean_terms
from act.train.rng import seed_everything
from act.train.state import TrainState, best_path, load_module, load_state, save_state
from act.train.step import LossTerms
from act.train.stream import batch_stream, batches_per_epoch
from act.train.watch import evaluate_when_due, report

Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class TrainResult:
    """What a training did.

    `images`: over all processes and epochs; `losses`: mean of each term over the last steps; `best_metric`: None
    without evaluations; `stopped_by`: `steps` or `target_metric`; `step_seconds`: see `act.train.laps`.
    """

    steps: int
    images: int
    seconds: float
    images_per_second: float
    losses: dict[str, float]
    best_metric: float | None
    stopped_by: str
    step_seconds: dict[str, float]


@dataclass
class Training:
    """What the parts of the loop share."""

    model: nn.Module
    strategy: Strategy | None
    cfg: TrainConfig
    ctx: Context
    folder: Path
    evaluate: Evaluate | None
    accelerator: Accelerator
    terms: nn.Module  # LossTerms, wrapped when there are several processes
    written_out: list[nn.Module]  # attention modules, see act.train.attention
    ema: ModelEmaV3 | None
    state: TrainState
    laps: Laps
    steps: int
    title: str
    last_good: Path | None = None


def total_steps(cfg: TrainConfig, batches: int | None) -> int:
    """Optimiser steps of a training on `batches` batches per epoch; `accumulation` batches make one step.

    Raises:
        InputError: the data cannot say how many batches an epoch has, and train_iter is not given.
    """
    if cfg.train_iter is not None:
        return cfg.train_iter
    if batches is None:
        raise InputError("TrainConfig.epochs: this training data has no length; give train_iter, the number of steps")
    return max(1, (cfg.epochs or 1) * batches // cfg.accumulation)


def recover(
    model: nn.Module,
    strategy: Strategy | None,
    objectives: list[Objective],
    cfg: TrainConfig,
    ctx: Context,
    folder: Path,
    evaluate: Evaluate | None = None,
) -> TrainResult:
    """Train `model` in place on the summed loss terms of `objectives` over `ctx.data`; it ends in eval mode.

    A batch is `cfg.batch_size` images over all processes, a step is `cfg.accumulation` batches. The state is kept in
    `folder`: called again on it, the training goes on where it stopped and, on a CPU, ends with the same bits.
    `evaluate` returns the metric of a model in percent; process 0 alone calls it and writes.

    Raises:
        InputError: impossible settings, no data, or a folder with another training.
        TrainingError: the loss or its gradient is no longer finite, memory ran out, a worker or a GPU died.
        Stopped: SIGTERM or Ctrl-C, after the step at hand was done and saved.
    """
    training = _start(model, strategy, objectives, cfg, ctx, folder, evaluate)
    try:
        if training.state.stopped_by is None:
            _run(training)
        return _result(training)
    except (RuntimeError, MemoryError, OSError) as error:
        settings = dataclasses.replace(cfg, batch_size=_batch_size(cfg, ctx))
        fault = training_fault(error, training.state.step + 1, settings, training.last_good, training.title)
        if fault is error:
            raise
        raise fault from error
    finally:
        close_trackers(training.accelerator)
        model.eval()


def _start(
    model: nn.Module,
    strategy: Strategy | None,
    objectives: list[Objective],
    cfg: TrainConfig,
    ctx: Context,
    folder: Path,
    evaluate: Evaluate | None,
) -> Training:
    problems = [f"TrainConfig.{problem}" for problem in train_problems(cfg)]
    if cfg.eval_iter is not None and evaluate is None:
        problems.append("TrainConfig.eval_iter: there is nothing to evaluate with; name data.val or leave it out")
    if not objectives:
        problems.append("there is no loss to train on: add a Distillation section, or give labelled images")
    if ctx.data is None:
        problems.append("data.train: missing; recovery training needs images (labels are optional)")
    if problems or ctx.data is None:
        raise InputError(problems)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator(cfg, ctx, folder)
    seed_everything(ctx.recipe.seed, accelerator.process_index)
    steps = total_steps(cfg, batches_per_epoch(ctx.data.train_loader(_batch_size(cfg, ctx))))
    laps = Laps(accelerator.device)
    terms = LossTerms(model, objectives, laps.lap).to(accelerator.device)
    ranges = strategy.range_parameters(model) if strategy is not None else []
    optimizer = make_optimizer(parameter_groups(model, terms.extra, ranges, cfg), cfg)
    # Averaging starts from nothing: a plain decay of 0.999 would keep the damaged weights for a thousand steps.
    ema = None
    if cfg.ema_decay is not None:
        ema = ModelEmaV3(model, decay=cfg.ema_decay, use_warmup=True, exclude_buffers=True)
    besides = [other for objective in objectives for other in objective.models()]
    parts = {"model": model, "extra": terms.extra} | ({"ema": ema.module} if ema is not None else {})
    state = TrainState(parts, optimizer, key=_key(cfg, ctx, steps, strategy), laps=laps.sums)
    training = Training(
        model=model,
        strategy=strategy,
        cfg=cfg,
        ctx=ctx,
        folder=folder,
        evaluate=evaluate,
        accelerator=accelerator,
        terms=terms,
        written_out=to_write_out([model, *besides], accelerator.device, cfg.amp == "bf16"),
        ema=ema,
        state=state,
        laps=laps,
        steps=steps,
        title=strategy.name if strategy is not None else "train",
    )
    training.last_good = load_state(
        state, folder, lambda text: ctx.log("warning", text), restore_random=accelerator.is_main_process
    )
    if training.last_good is not None:
        ctx.log("train_resumed", f"{training.title}: continuing after step {state.step}", step=state.step, steps=steps)
        if not accelerator.is_main_process:
            seed_everything(ctx.recipe.seed, accelerator.process_index, state.step)
    training.terms = accelerator.prepare_model(terms)
    return training


def _run(training: Training) -> None:
    """Every step that is left, then the weights that were chosen."""
    state, cfg = training.state, training.cfg
    ctx = training.ctx
    assert ctx.data is not None
    consumed = state.step * cfg.accumulation
    stream = batch_stream(ctx.data, _batch_size(cfg, ctx), training.accelerator, ctx.recipe.seed, consumed)
    meter = Meter(training.steps, state.step, state.seconds, state.images, state.recent, cfg.eval_iter)
    training.model.train()
    shown = training.accelerator.is_main_process
    with StopAfterStep() as stop, Bar(training.title, training.steps, state.step, shown) as bar:
        while state.step < training.steps:
            training.laps.start(state.step)
            rate = set_learning_rate(state.optimizer, schedule_factor(state.step + 1, training.steps, cfg))
            terms, images = _backward(training, stream)
            if training.strategy is not None:
                training.strategy.before_step(training.model)
            norm = clip_gradients(state.optimizer, cfg.clip_grad)
            check_finite(state.step + 1, terms, norm, cfg, training.last_good)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            state.step += 1
            values = {}
            if training.strategy is not None:
                values = training.strategy.after_step(training.model, state.step, training.steps)
            if training.ema is not None:
                training.ema.update(training.model, state.step)
            training.laps.lap(UPDATE)
            meter.add(state.step, terms, images)
            if state.step % cfg.logging_iter == 0 or state.step == training.steps:
                report(training, meter, bar, rate, values)
            reached = evaluate_when_due(training, meter)
            if reached or state.step == training.steps:
                break
            asked = any_process(stop.number, training.accelerator)
            if asked or state.step % cfg.save_iter == 0:
                _save(training, meter)
            if asked:
                # A process that ends makes the launcher end the others, one of which is still saving.
                training.accelerator.wait_for_everyone()
                raise Stopped(asked, f" in {training.title}, step {state.step} of {training.steps} is saved")
        _finish(training, meter, "target_metric" if reached else "steps")


def _backward(training: Training, stream: Iterator[Batch]) -> tuple[dict[str, float], int]:
    """Gradients of one step's batches; their mean loss terms in this process and the number of images in all."""
    count, accelerator = training.cfg.accumulation, training.accelerator
    names: list[str] = []
    total: Tensor | None = None
    images = 0
    for index in range(count):
        batch = next(stream)
        training.laps.lap(IMAGES)
        images += len(batch.images) * accelerator.num_processes
        # Gradients are averaged over the processes once per step, with the last of its batches.
        with accelerator.no_sync(training.terms) if index + 1 < count else nullcontext():
            half = torch.autocast(accelerator.device.type, torch.bfloat16, enabled=training.cfg.amp == "bf16")
            with half, written_out(training.written_out):
                terms = training.terms(batch.images, batch.labels)
            names = list(terms)
            values = torch.stack([term.float() for term in terms.values()]) / count
            values.sum().backward()  # type: ignore[no-untyped-call]
        training.laps.lap(BACKWARD)
        total = values.detach() if total is None else total + values.detach()
    assert total is not None
    return dict(zip(names, total.tolist(), strict=True)), images


def _save(training: Training, meter: Meter) -> None:
    state = training.state
    state.seconds, state.images = meter.seconds, meter.images
    state.recent = [mean_over_processes(dict(terms), training.accelerator) for terms in meter.recent]
    if training.accelerator.is_main_process:
        training.last_good = save_state(state, training.folder)


def _finish(training: Training, meter: Meter, stopped_by: str) -> None:
    """Put the chosen weights into the model (best, else averaged, else last) and keep them."""
    state = training.state
    training.accelerator.wait_for_everyone()
    if training.cfg.select == "best" and state.best_step is not None:
        load_module(training.model, best_path(training.folder, state.best_step))
    elif training.ema is not None:
        training.model.load_state_dict(training.ema.module.state_dict())
    state.stopped_by = stopped_by
    training.accelerator.wait_for_everyone()
    _save(training, meter)
    training.accelerator.wait_for_everyone()


def _result(training: Training) -> TrainResult:
    state = training.state
    assert state.stopped_by is not None
    rate = state.images / max(state.seconds, 1e-9)
    return TrainResult(
        steps=state.step,
        images=state.images,
        seconds=state.seconds,
        images_per_second=rate,
        losses=mean_terms(state.recent),
        best_metric=state.best_metric,
        stopped_by=state.stopped_by,
        step_seconds=training.laps.per_step(),
    )


def _batch_size(cfg: TrainConfig, ctx: Context) -> int:
    return cfg.batch_size or ctx.recipe.data.batch_size


def _key(cfg: TrainConfig, ctx: Context, steps: int, strategy: Strategy | None) -> dict[str, Any]:
    name = strategy.name if strategy is not None else None
    own = {"batch_size": _batch_size(cfg, ctx), "seed": ctx.recipe.seed, "steps": steps, "strategy": name}
    return train_part(cfg) | own
