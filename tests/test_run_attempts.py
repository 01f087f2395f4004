"""Runs that back off until accuracy is what the target asks for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

from act.context import Context
from act.recipe.load import load_recipe
from act.recipe.schema import Recipe, TargetConfig
from act.run.attempts import Attempt, back_off, best_attempt
from act.run.runner import run

BASE = ["TrainConfig.train_iter=2", "TrainConfig.epochs=null", "TrainConfig.warmup_iter=0", "~Prune", "~QuantAware"]


def goal(key: str, limit: float, measured: float, met: bool) -> dict[str, object]:
    return {"key": key, "limit": limit, "measured": measured, "met": met, "text": key}


def attempt(*goals: dict[str, object]) -> Attempt:
    status = "met" if all(g["met"] for g in goals) else "missed"
    return Attempt(None, "", {"status": status, "goals": list(goals)})  # type: ignore[arg-type]


def test_the_best_attempt_meets_accuracy_before_cost() -> None:
    fast = attempt(goal("max_drop", 1, 3, False), goal("speedup", 2, 3, True))
    right = attempt(goal("max_drop", 1, 1, True), goal("speedup", 2, 1.5, False))
    near = attempt(goal("max_drop", 1, 2, False), goal("speedup", 2, 1, False))
    both = attempt(goal("max_drop", 1, 1, True), goal("speedup", 2, 2, True))
    assert best_attempt([fast, right, near]) == 1
    assert best_attempt([fast, near]) == 1
    assert best_attempt([fast, right, near, both]) == 3
    assert best_attempt([both, both]) == 0


def test_the_stage_that_lost_most_agreement_is_done_again_whatever_the_callers_metric_is() -> None:
    class Milder:
        def __init__(self, name: str) -> None:
            self.name = name

        def milder(self, start: object, ctx: object) -> tuple[object, str]:
            return None, "milder"

    recipe = Recipe()
    recipe.target, recipe.train.metric_mode = TargetConfig(min_agreement=99), "min"
    stages: Any = [SimpleNamespace(strategy=Milder(name), train=None) for name in ("First", "Second")]
    scores = [{"agreement": 60.0, "error": 2.0}, {"agreement": 59.0, "error": 5.0}]
    report = {"baseline": {"error": 1.0}, "stages": scores, "goals": [goal("min_agreement", 99, 59, False)]}
    found = back_off(Attempt(recipe, "", report), stages, "error", nn.Identity(), Context(recipe, (1, 8, 8)))
    assert found is not None and found[1] == "First: milder"


def test_a_ratio_that_costs_too_much_is_halved_and_the_best_kept(tmp_path: Path) -> None:
    words = ["TransformerPrune.pruned_ratio=0.7", "TransformerPrune.images=32", "TransformerPrune.criterion=magnitude"]
    words += [
        "TransformerPrune.allocation=uniform",
        "target.max_drop=null",
        "target.min_agreement=99",
        "TransformerPrune.refit=false",
    ]
    recipe = load_recipe("quickstart", [*BASE, *words, "export.benchmark=false", "data.limit_val=100"])
    folder, shared = tmp_path / "run", tmp_path / "shared"
    result = run(recipe, folder, shared=shared)
    report = result.report
    # The original, and the one stage of every attempt.
    assert len(list(shared.iterdir())) == 1 + len(report["attempts"])
    assert [a["reason"] for a in report["attempts"]][:2] == [
        "as the recipe says",
        "TransformerPrune: pruned_ratio 0.35",
    ]
    assert (
        report["kept"] > 1 and report["artifacts"][0]["agreement"] > report_of(folder, 1)["artifacts"][0]["agreement"]
    )
    # What the best attempt made is what lies in the run's folder, and the first attempt's is still there.
    kept = folder / "attempts" / f"{report['kept']:02d}"
    assert (folder / "artifact" / "model.onnx").read_bytes() == (kept / "artifact" / "model.onnx").read_bytes()
    assert (folder / "attempts" / "01" / "artifact" / "model.onnx").is_file()
    before = (folder / "report.json").stat().st_mtime_ns
    again = run(recipe, folder)
    assert again.report == report and (folder / "report.json").stat().st_mtime_ns == before


def report_of(folder: Path, number: int) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "attempts" / f"{number:02d}" / "report.json").read_text())
    return found
