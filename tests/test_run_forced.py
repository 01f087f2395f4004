"""A finished folder taken over by other settings: what depends on them is made anew, the rest is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from act.recipe.load import load_recipe
from act.run.log import read_events
from act.run.runner import run

WORDS = ["~Prune", "~QuantAware", "~Distillation", "QuantPost.images=16", "data.limit_val=40", "data.workers=0"]
WORDS += ["export.benchmark=false", "target.max_drop=50", "target.min_agreement=null"]


def forced(folder: Path, *words: str) -> dict[str, Any]:
    return run(load_recipe("quickstart", [*WORDS, *words]), folder, force=True).report


def test_goals_follow_the_metric_and_scores_the_batch_size(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = forced(folder)
    assert first["metric"] == "top1" and first["goals"][0]["text"].startswith("top1")
    other = forced(folder, "TrainConfig.metric=agreement")
    assert other["metric"] == "agreement" and other["goals"][0]["text"].startswith("agreement")
    # Nothing that was computed depends on what goals go by.
    assert other["stages"] == first["stages"]
    smaller = forced(folder, "data.batch_size=16")
    assert smaller["baseline"]["top1"] == first["baseline"]["top1"]


def test_attempts_are_made_anew_for_other_settings_of_the_data(tmp_path: Path) -> None:
    words = ["target.max_drop=null", "target.min_agreement=100", "target.attempts=2", "QuantPost.weight_bits=3"]
    first = forced(tmp_path, *words)
    assert len(first["attempts"]) == 2
    assert forced(tmp_path, *words) == first
    forced(tmp_path, *words, "data.max_bad_images=3")
    events = [event.get("message") for event in read_events(tmp_path / "events.jsonl")]
    assert events.count("finished before, nothing to do") == 1
