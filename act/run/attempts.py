"""Back-off: when the exported file loses more accuracy than the target allows, what lost most is done again, milder.

The policy, in this order, for the stage whose loss of the metric is largest:

1. Where a goal of cost (latency, speed-up, bytes, MACs) is met and would be lost by compressing less, the stage trains
   twice as long.
2. Else the strategy compresses less, in its own way: half the ratio of structured pruning, the layers that are most
   sensitive by measurement left out of 2:4 or of quantisation.
3. A strategy that has nothing milder trains twice as long; one that does not train ends the attempts.

Every attempt keeps its own run folder; the best one's files become those of the run.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from act.recipe.load import stage_train_config
from act.run.atomic import PARTIAL
from act.run.deliver import mark_delivered
from act.run.folder import RunFolder
from act.run.goals import ACCURACY, COSTS
from act.run.report import measured, write_report

if TYPE_CHECKING:
    from torch import nn

    from act.context import Context
    from act.plan import Stage
    from act.recipe.schema import Recipe


@dataclass(frozen=True)
class Attempt:
    """A recipe that was run, why it is as it is, and its report."""

    recipe: Recipe
    reason: str
    report: dict[str, Any]


def missed(report: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """Which of those goals the report says were missed."""
    return [goal["key"] for goal in report["goals"] if goal["key"] in keys and not goal["met"]]


def worst_stage(report: Mapping[str, Any], stages: Sequence[Stage], metric: str, mode: str) -> Stage | None:
    """The stage that lost most of the metric against the one before it; None where stages were not scored."""
    sign = 1 if mode == "max" else -1
    before = report["baseline"].get(metric, 100.0)
    losses = []
    for stage, entry in zip(stages, report["stages"], strict=True):
        if metric not in entry:
            return None
        losses.append((sign * (before - entry[metric]), stage))
        before = entry[metric]
    return max(losses, key=lambda item: item[0])[1] if losses else None


def back_off(
    last: Attempt, stages: Sequence[Stage], metric: str, start: nn.Module, ctx: Context
) -> tuple[Recipe, str] | None:
    """The next recipe to try, and what is different, in words; None when the policy has nothing left.

    `start` is the original model, on which layers' sensitivities are measured.
    """
    if not missed(last.report, ACCURACY):
        return None
    recipe = last.recipe
    # Agreement is what is left to judge by where the target asks for nothing else; more of it is always better.
    metric = metric if recipe.target.max_drop is not None else "agreement"
    mode = "max" if metric == "agreement" else recipe.train.metric_mode
    stage = worst_stage(last.report, stages, metric, mode)
    if stage is None:
        return None
    name = stage.strategy.name
    costly = any(getattr(recipe.target, key) is not None for key in COSTS) and not missed(last.report, COSTS)
    if stage.train is not None and costly:
        return _longer(recipe, name)
    found = stage.strategy.milder(start, ctx)
    if found is not None:
        config, reason = found
        return dataclasses.replace(recipe, strategies={**recipe.strategies, name: config}), f"{name}: {reason}"
    return _longer(recipe, name) if stage.train is not None else None


def _longer(recipe: Recipe, name: str) -> tuple[Recipe, str]:
    own = stage_train_config(recipe, name)
    key = "train_iter" if own.train_iter is not None else "epochs"
    value = 2 * (getattr(own, key) or 1)
    stages = {**recipe.train.stages, name: {**recipe.train.stages.get(name, {}), key: value}}
    train = dataclasses.replace(recipe.train, stages=stages)
    return dataclasses.replace(recipe, train=train), f"{name}: {key} {value}"


def attempt_folder(folder: RunFolder, number: int) -> RunFolder:
    """Where an attempt after the first is kept."""
    return RunFolder(folder.path / "attempts" / f"{number:02d}", folder.shared)


def start_attempt(previous: RunFolder, following: RunFolder) -> None:
    """Give an attempt the stages of the one before it: what its recipe does not change is not computed again."""
    if not following.path.is_dir() and (previous.path / "stages").is_dir():
        # Copied beside and renamed, so that half a copy is never taken for the whole.
        temporary = following.path.with_name(f"{PARTIAL}{following.path.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(previous.path / "stages", temporary / "stages")
        os.replace(temporary, following.path)


def keep_best(folder: RunFolder, tried: Sequence[Attempt], key: str) -> None:
    """Make the best attempt's files and reports those of the run, with the list of all; those of the first attempt, if
    another is better, move to a folder like the others'."""
    best = best_attempt(tried)
    if best:
        first, source = attempt_folder(folder, 1), attempt_folder(folder, best + 1)
        if not first.artifact.is_dir():
            first.path.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder.path / "report.json", first.path)
            os.replace(folder.artifact, first.artifact)
        shutil.rmtree(folder.artifact, ignore_errors=True)
        shutil.copytree(source.artifact, folder.artifact)
    attempts = [
        {"number": number, "reason": item.reason, "status": item.report["status"], "goals": item.report["goals"]}
        | {"artifacts": measured(item.report)["artifacts"]}
        for number, item in enumerate(tried, 1)
    ]
    report = tried[best].report | {"attempts": attempts, "kept": best + 1}
    write_report(folder, tried[best].recipe, report)
    mark_delivered(folder, key)


def best_attempt(attempts: Sequence[Attempt]) -> int:
    """Index of the best: all goals met, else all of accuracy, else the smallest shortfall; the first of equals."""

    def rank(index: int) -> tuple[bool, bool, float, int]:
        report = attempts[index].report
        short = sum(abs(goal["measured"] - goal["limit"]) for goal in report["goals"] if _failed(goal, ACCURACY))
        return report["status"] != "met", bool(missed(report, ACCURACY)), short, index

    return min(range(len(attempts)), key=rank)


def _failed(goal: Mapping[str, Any], keys: Sequence[str]) -> bool:
    return goal["key"] in keys and not goal["met"]
