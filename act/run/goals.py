"""The recipe's target against what was measured on the exported file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from act.errors import InputError
from act.recipe.schema import Recipe, TargetConfig
from act.run.formats import FORMATS, format_problems

ACCURACY = ("max_drop", "min_agreement")
COSTS = ("latency_ms", "speedup", "bytes", "macs")
EXIT_CODES = {"met": 0, "no_target": 0, "missed": 3}


@dataclass(frozen=True)
class Goal:
    """One goal: its key in the recipe, its limit, what was measured, in words, and whether it is met."""

    key: str
    limit: float
    measured: float
    met: bool
    text: str


def has_target(target: TargetConfig) -> bool:
    """Whether the recipe asks for anything at all."""
    return any(getattr(target, key) is not None for key in COSTS + ACCURACY)


def needs_timing(target: TargetConfig) -> bool:
    """Whether a goal can only be judged by timing the exported file."""
    return target.latency_ms is not None or target.speedup is not None


def check_measurable(recipe: Recipe, has_val: bool, has_callback: bool, val_labelled: bool = True) -> None:
    """InputError, before anything heavy runs, for every goal, check or metric that this run could not measure."""
    target = recipe.target
    problems = format_problems(recipe.export.formats)
    if not has_val:
        add = "name images in data.val (labels are needed for top-1 only)"
        if target.max_drop is not None and not has_callback:
            problems.append(f"target.max_drop: {target.max_drop} cannot be judged without a validation set; {add}")
        if target.min_agreement is not None:
            problems.append(
                f"target.min_agreement: {target.min_agreement} cannot be judged without a validation set; {add}"
            )
        if recipe.train.origin_metric is not None and not has_callback:
            problems.append(f"TrainConfig.origin_metric: cannot be checked without a validation set; {add}")
    if has_val and not val_labelled and not has_callback:
        own = {"TrainConfig": recipe.train.metric}
        own |= {f"TrainConfig.stages.{name}": values.get("metric") for name, values in recipe.train.stages.items()}
        problems += [
            f"{key}.metric: top1 needs labels, and the images of data.val have none; leave it out, or say agreement"
            for key, metric in own.items()
            if metric == "top1"
        ]
    if recipe.train.metric_mode == "min" and not has_callback:
        problems.append(
            "TrainConfig.metric_mode: min is for a metric of the caller's own (eval_callback); of top1 and agreement "
            "more is better; leave it out"
        )
    timed = [FORMATS[name].backend for name in recipe.export.formats if name in FORMATS and FORMATS[name].timed]
    if needs_timing(target) and (target.backend not in timed or target.device != "cpu"):
        problems.append(
            f"target.backend: a run of these export.formats times its files with {', '.join(timed) or 'nothing'} on "
            f"cpu, not with {target.backend} on {target.device}; leave target.latency_ms and target.speedup out, or "
            "set backend and device so"
        )
    if problems:
        raise InputError(problems)


def judge(
    target: TargetConfig, baseline: Mapping[str, Any], artifact: Mapping[str, Any], metric: str, mode: str = "max"
) -> list[Goal]:
    """Every goal of `target` against the exported file's report entry; `metric` is the figure that `max_drop` is in.

    Latencies are medians in milliseconds per batch of `target.batch` images; accuracies are in percent. With
    `mode` min, the metric is an error and a rise is what is lost.
    """
    goals: list[Goal] = []

    def at_most(key: str, measured: float, text: str) -> None:
        limit = getattr(target, key)
        if limit is not None:
            goals.append(Goal(key, float(limit), measured, measured <= limit, f"{text}: at most {limit:g}"))

    def at_least(key: str, measured: float, text: str) -> None:
        limit = getattr(target, key)
        if limit is not None:
            goals.append(Goal(key, float(limit), measured, measured >= limit, f"{text}: at least {limit:g}"))

    if target.max_drop is not None:
        before = float(baseline.get(metric, 100.0))  # the original agrees with itself on every image
        drop = (before - float(artifact[metric])) * (1 if mode == "max" else -1)
        change = artifact[metric] - before
        at_most("max_drop", drop, f"{metric} {before:.2f} -> {artifact[metric]:.2f} ({change:+z.2f}); loss allowed")
    if target.min_agreement is not None:
        at_least("min_agreement", float(artifact["agreement"]), f"agreement {artifact['agreement']:.2f} %")
    if needs_timing(target):
        at = f"{target.backend}, batch {target.batch}"
        latency = float(artifact["latency"][target.backend][str(target.batch)]["median_ms"])
        speedup = float(artifact["speedup"][target.backend][str(target.batch)])
        at_most("latency_ms", latency, f"latency {latency:.2f} ms ({at})")
        at_least("speedup", speedup, f"speed-up {speedup:.2f}x ({at})")
    if target.macs is not None:
        at_most("macs", float(artifact["macs"]), f"{artifact['macs'] / 1e6:,.0f} M multiply-accumulates per image")
    at_most("bytes", float(artifact["bytes"]), f"{artifact['bytes']:,} bytes")
    return goals


def judged(target: TargetConfig, artifacts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The exported file that the goals are for: the one timed by `target.backend` if any goal is a time, else the
    main one."""
    fitting = (item for item in artifacts if target.backend in item.get("latency", {}))
    return next(fitting, artifacts[0]) if needs_timing(target) else artifacts[0]


def status_of(goals: list[Goal]) -> str:
    """`met`, `missed` or `no_target`."""
    if not goals:
        return "no_target"
    return "met" if all(goal.met for goal in goals) else "missed"
