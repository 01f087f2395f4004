"""A run that is killed at any moment, any number of times, ends like one that was left alone."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import fault_support as support
import pytest

# An event of an undisturbed run, and up to how many seconds after it the process dies. They cover calibration, training
# and its checkpoints, evaluation, finishing a stage, export, and the report.
MOMENTS = {
    "": 4.0,  # from the start: imports, the lock, the claim
    "run": 1.5,  # the original is scored and exported
    "baseline": 0.3,
    "stage": 1.0,
    "layers": 0.3,
    "train_step": 0.3,
    "train_evaluation": 0.1,
    "equalized": 0.5,
    "calibrated": 0.3,
    "stage_done": 0.5,
    "export": 3.0,
    "runtime": 1.0,
    "verified": 0.2,
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return support.write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    support.finish(recipe, folder)
    return folder


def kill(recipe: Path, folder: Path, event: str, nth: int, delay: float) -> str | None:
    """Start the run and kill it `delay` seconds after it wrote its `nth` new `event`; what it had last said it did.

    None when it ended before.
    """
    before = len(support.events(folder))
    process = support.start(recipe, folder)
    deadline = time.monotonic() + 600
    try:
        while process.poll() is None and event:
            if [item["event"] for item in support.events(folder)[before:]].count(event) >= nth:
                break
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(delay)
    finally:
        process.kill()
        assert process.wait() in (0, -signal.SIGKILL), process.stderr and process.stderr.read()
        if process.stderr is not None:
            process.stderr.close()
    if process.returncode == 0:
        return None
    found = support.events(folder)[before:]
    return str(found[-1]["event"]) if found else "start"


def kills_then_finish(recipe: Path, whole: Path, folder: Path, moments: list[str], seed: int) -> list[str]:
    """Kill the run at each of `moments`, then let it end like `whole`; where it was each time that it died."""
    rng = random.Random(seed)
    hits: list[str] = []
    for event in moments:
        hit = kill(recipe, folder, event, rng.randint(1, 4), rng.uniform(0, MOMENTS[event]))
        if hit is None:  # nothing was left to kill: a run from its start again
            folder = folder.with_name(f"{folder.name}+")
        else:
            hits.append(hit)
    support.finish(recipe, folder)
    support.same_results(whole, folder)
    return hits


def test_three_kills(recipe: Path, whole: Path, tmp_path: Path) -> None:
    hits = kills_then_finish(recipe, whole, tmp_path / "run", ["train_step", "calibrated", "export"], seed=0)
    assert len(hits) == 3
    notes = [item.get("message", "") for item in support.events(tmp_path / "run")]
    assert len([note for note in notes if note.startswith("taken over from process") and "was killed" in note]) == 3


@pytest.mark.slow
def test_many_kills(recipe: Path, whole: Path, tmp_path: Path) -> None:
    hits = []
    for seed in range(1, 4):
        rng = random.Random(seed)
        # In the order of a run, so that each gets further; a moment that has passed hits what is left of the run.
        moments = [event for event in MOMENTS for _ in range(rng.choice((1, 1, 2)) if event != "verified" else 1)]
        hits += kills_then_finish(recipe, whole, tmp_path / f"run{seed}", moments, seed)
    print(hits)
    assert len(hits) >= 20
    assert {"start", "stage", "train_step", "export"} <= set(hits)
