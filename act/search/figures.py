"""What a trial is measured by: its figures, how far it is from the target, and which trial is the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from act.errors import InputError
from act.recipe.coerce import near
from act.recipe.schema import Recipe
from act.run.formats import FORMATS
from act.run.goals import needs_timing

OBJECTIVES = ("accuracy", "agreement", "latency", "speedup", "bytes")
_UPWARDS = {"accuracy", "agreement", "speedup"}
_LIMITS = {  # goals of a recipe, and the objective that each limits
    "max_drop": "accuracy",
    "min_agreement": "agreement",
    "latency_ms": "latency",
    "speedup": "speedup",
    "bytes": "bytes",
}
_AT_LEAST = ("min_agreement", "speedup")


@dataclass(frozen=True)
class Trial:
    """One trial as everybody sees it.

    `state` is met, missed, no_target, failed, running or passed_over (proposed, but not run: `reason` says why).
    `figures` holds every figure of OBJECTIVES that was measured, `original` those of the original, `goals` the report's
    goals, `measured` what a recipe keeps of a report, `place` the machine and the folder, `seconds` how long it took.
    """

    number: int
    state: str
    point: dict[str, Any]
    figures: dict[str, Any]
    original: dict[str, Any]
    goals: list[dict[str, Any]]
    reason: str
    measured: dict[str, Any]
    place: str
    seconds: float

    @property
    def done(self) -> bool:
        return self.state in ("met", "missed", "no_target")


def default_objectives(recipe: Recipe) -> list[str]:
    """Accuracy, and the cost that the target limits; latency when it limits none."""
    costs = [name for name in ("latency", "speedup", "bytes") if name in limited(recipe)]
    return [metric_objective(recipe), (costs or ["latency"])[0]]


def metric_objective(recipe: Recipe) -> str:
    """Accuracy; agreement where that is all the target asks for."""
    limits = limited(recipe)
    return "agreement" if "agreement" in limits and "accuracy" not in limits else "accuracy"


def limited(recipe: Recipe) -> list[str]:
    """The objectives that the recipe's target limits."""
    return [name for key, name in _LIMITS.items() if getattr(recipe.target, key) is not None]


def check_objectives(names: Sequence[str], recipe: Recipe) -> None:
    """InputError for every objective that is unknown, named twice, or cannot be measured by runs of this recipe."""
    problems = []
    for name in dict.fromkeys(names):
        if name not in OBJECTIVES:
            problems.append(
                f"--objectives: {name!r} is unknown{near(name, OBJECTIVES)}; allowed: {', '.join(OBJECTIVES)}"
            )
        elif names.count(name) > 1:
            problems.append(f"--objectives: {name} is named twice")
        elif name in ("accuracy", "agreement") and recipe.data.val is None:
            problems.append(f"--objectives: {name} needs data.val: images to measure it on")
    if not 1 <= len(names) <= 3:
        problems.append(f"--objectives: {len(names)} names; allowed: one to three")
    if {"latency", "speedup"} & set(names):
        problems += _timing_problems(recipe)
    if problems:
        raise InputError(problems)


def _timing_problems(recipe: Recipe) -> list[str]:
    target, export = recipe.target, recipe.export
    timed = [FORMATS[name].backend for name in export.formats if name in FORMATS and FORMATS[name].timed]
    problems = []
    if target.backend not in timed or target.device != "cpu":
        problems.append(
            f"target.backend: runs of this recipe are timed with {', '.join(timed) or 'nothing'} on cpu, not with "
            f"{target.backend} on {target.device}"
        )
    if needs_timing(target):
        return problems
    if not export.benchmark:
        problems.append("export.benchmark: false, so nothing is timed; set it to true, or choose other --objectives")
    elif target.batch not in export.benchmark_batches:
        problems.append(f"target.batch: {target.batch} is not among export.benchmark_batches; add it there")
    return problems


def directions(names: Sequence[str], recipe: Recipe) -> list[str]:
    """maximize or minimize, as Optuna says it."""
    mode = {"accuracy": recipe.train.metric_mode}
    return ["maximize" if name in _UPWARDS and mode.get(name) != "min" else "minimize" for name in names]


def figures_of(report: Mapping[str, Any], recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every figure of OBJECTIVES that the report has, of the file that `target.backend` runs, and of the original.

    `metric` is the name of what accuracy is. Accuracy and agreement are in percent, latency in ms per batch of
    `target.batch` images.
    """
    target, batch = recipe.target, str(recipe.target.batch)
    timed = [item for item in report["artifacts"] if batch in item.get("latency", {}).get(target.backend, {})]
    item, before = timed[0] if timed else report["artifacts"][0], report["baseline"]
    metric = recipe.train.metric or ("top1" if "top1" in item else "agreement")
    found: dict[str, Any] = {"metric": metric, "bytes": item["bytes"]}
    original: dict[str, Any] = {"metric": metric, "bytes": before["bytes"]}
    if "agreement" in item:
        found |= {"accuracy": item[metric], "agreement": item["agreement"]}
        original |= {"accuracy": before.get(metric, 100.0), "agreement": 100.0}  # it agrees with itself
    if timed:
        found["latency"] = item["latency"][target.backend][batch]["median_ms"]
        found["speedup"] = item["speedup"][target.backend][batch]
        original |= {"latency": before["latency"][target.backend][batch]["median_ms"], "speedup": 1.0}
    return found, original


def violations(goals: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By how much each goal is missed, relative to its limit (a limit of 0: absolutely); 0 or less where it is met."""
    found = {}
    for goal in goals:
        over = goal["measured"] - goal["limit"]
        found[goal["key"]] = (-over if goal["key"] in _AT_LEAST else over) / (abs(goal["limit"]) or 1.0)
    return found


def best(trials: Sequence[Trial], names: Sequence[str], recipe: Recipe) -> Trial | None:
    """The best of the trials that are done.

    Of those that meet the target the one that is best in what the target does not limit, in the order of `names`; of
    trials that all miss it the one that misses it by least.
    """
    done = [trial for trial in trials if trial.done]
    met = [trial for trial in done if trial.state != "missed"]
    limits = limited(recipe)
    order = sorted(names, key=lambda name: name in limits)  # stable: what is not limited comes first
    signs = [-1 if direction == "maximize" else 1 for direction in directions(order, recipe)]

    def rank(trial: Trial) -> tuple[float, ...]:
        values = [sign * trial.figures[name] for name, sign in zip(order, signs, strict=True)]
        missed = 0.0 if met else sum(max(0.0, value) for value in violations(trial.goals).values())
        return (missed, *values, trial.number)

    return min(met or done, key=rank, default=None)


def front(trials: Sequence[Trial], names: Sequence[str], recipe: Recipe) -> list[Trial]:
    """The trials that no other one equals or surpasses in every objective (of equal ones the first)."""
    signs = [-1 if direction == "maximize" else 1 for direction in directions(names, recipe)]
    done = [trial for trial in trials if trial.done]
    values = [[sign * trial.figures[name] for name, sign in zip(names, signs, strict=True)] for trial in done]

    def beaten(index: int) -> bool:
        mine = values[index]
        return any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and (other != mine or place < index)
            for place, other in enumerate(values)
        )

    return [trial for index, trial in enumerate(done) if not beaten(index)]
