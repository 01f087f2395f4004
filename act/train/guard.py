"""Stops a training that has gone to NaN or infinity, before the bad step touches the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from act.errors import TrainingError
from act.recipe.schema import TrainConfig
from act.run.faults import explain, no_memory


def check_finite(
    step: int, terms: Mapping[str, float], gradient_norm: float, cfg: TrainConfig, last_good: Path | None
) -> None:
    """Raise TrainingError when a loss term or the gradient norm of step `step` is not finite.

    The message names the step, every term, what usually causes it here, and the last good checkpoint.
    """
    bad = [name for name, value in terms.items() if not math.isfinite(value)]
    if not bad and math.isfinite(gradient_norm):
        return
    what = f"the loss {' and '.join(bad)} is" if bad else "the gradient is"
    values = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
    kept = f"the last good state is {last_good}" if last_good else "no state had been saved yet"
    raise TrainingError(
        f"training stopped at step {step}: {what} not finite ({values}, gradient norm {gradient_norm:.4g}); "
        f"likely causes: {'; '.join(_causes(step, cfg))}; {kept}"
    )


def training_fault(error: Exception, step: int, settings: TrainConfig, last_good: Path | None, stage: str) -> Exception:
    """`error` of step `step`, or the TrainingError that says what failed and how to go on.

    `settings` has the batch size that was used. Memory that ran out is not worked around in silence: what a step
    computes on half a batch is not the same for every loss.
    """
    if no_memory(error):
        name, half = f"TrainConfig.stages.{stage}", settings.batch_size // 2 if settings.batch_size else 0
        advice = (
            f"--force {name}.batch_size={half} {name}.accumulation={2 * settings.accumulation} makes steps of as many "
            "images in half the memory, from this stage's beginning"
            if half
            else "a batch is one image already: use a smaller model or teacher, or fewer distilled nodes"
        )
        reason = f"{explain(error)} with batches of {settings.batch_size} images; {advice}"
    else:
        found = explain(error)
        if found is None:
            return error
        reason = found
    kept = f"the last good state is {last_good}" if last_good else "no state had been saved yet"
    return TrainingError(f"training stopped at step {step}: {reason}; {kept}")


def _causes(step: int, cfg: TrainConfig) -> list[str]:
    causes = [f"learning_rate {cfg.learning_rate:g} is too high"]
    if cfg.range_learning_rate is not None:
        causes.append(f"range_learning_rate {cfg.range_learning_rate:g} is too high")
    if cfg.clip_grad is None:
        causes.append("clip_grad is off")
    if cfg.warmup_iter == 0 and step < 200:
        causes.append("there is no warm-up (warmup_iter)")
    if cfg.amp != "no":
        causes.append(f"amp {cfg.amp} loses precision")
    if step == 1:
        causes.append("the input model or the data already holds NaN")
    return causes
