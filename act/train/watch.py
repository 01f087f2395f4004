"""What a training does at some of its steps: report, and evaluate."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from act.train.launch import from_main, mean_over_processes
from act.train.progress import Bar, Meter, describe
from act.train.state import best_path, save_tensors

if TYPE_CHECKING:
    from act.train.recover import Training


def report(training: Training, meter: Meter, bar: Bar, rate: float, values: dict[str, float]) -> None:
    """The event of a logging step, its line or bar, and the trackers."""
    losses = mean_over_processes(meter.losses(), training.accelerator)
    line = describe(training.title, meter, losses, rate, values)
    bar.update(meter.step, line)
    training.ctx.log(
        "train_step",
        "" if bar.shown else line,
        stage=training.title,
        step=meter.step,
        steps=meter.steps,
        lr=rate,
        loss=sum(losses.values()),
        losses=losses,
        values=values,
        images_per_second=round(meter.images_per_second, 2),
        eta_seconds=round(meter.eta_seconds, 1),
    )
    if training.cfg.trackers:
        tracked = {f"loss/{name}": value for name, value in losses.items()} | {"lr": rate} | values
        training.accelerator.log(tracked | {"images_per_second": meter.images_per_second}, step=meter.step)


def evaluate_when_due(training: Training, meter: Meter) -> bool:
    """Evaluate every `eval_iter` steps and after the last; remember the best; True when the target is reached."""
    cfg, state = training.cfg, training.state
    if cfg.eval_iter is None or training.evaluate is None:
        return False
    if state.step % cfg.eval_iter and state.step != training.steps:
        return False
    model = training.ema.module if training.ema is not None else training.model
    value = 0.0
    started = time.monotonic()
    if training.accelerator.is_main_process:
        model.eval()
        value = float(training.evaluate(model))
    # Every process must stop at the same step, so that none waits for another's gradients.
    value = from_main(value, training.accelerator)
    meter.evaluated(time.monotonic() - started)
    training.model.train()
    better = state.best_metric is None or _better(value, state.best_metric, cfg.metric_mode)
    if better:
        state.best_metric, state.best_step = value, state.step
        if cfg.select == "best" and training.accelerator.is_main_process:
            save_tensors(best_path(training.folder, state.step), model.state_dict())
    message = f"{training.title} {state.step}/{training.steps}  metric {value:.4g}{' (best so far)' if better else ''}"
    training.ctx.log("train_evaluation", message, stage=training.title, step=state.step, metric=value, best=better)
    if training.cfg.trackers:
        training.accelerator.log({"metric": value}, step=state.step)
    return cfg.target_metric is not None and not _better(cfg.target_metric, value, cfg.metric_mode)


def _better(value: float, than: float, mode: str) -> bool:
    return value > than if mode == "max" else value < than
