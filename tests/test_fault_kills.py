"""A run that is killed, interrupted or terminated at any moment ends, when continued, like one that was left alone."""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import fault_support as support
import pytest

from act.cli.main import main

Moment = tuple[str, int, float]  # which of a process's events, counted from 1, and how many seconds later it dies
# The events of a run in their order, how many of a kind may pass, and for how long after one the process may live. They
# cover the start, calibration, training and its checkpoints, evaluation, the end of a stage, export, and the report.
MOMENTS: list[Moment] = [
    ("", 0, 4.0),  # from the start: imports, the lock, the claim
    ("run", 1, 1.5),  # the original is scored and exported
    ("baseline", 1, 0.3),
    ("layers", 1, 0.3),
    ("train_step", 5, 0.1),
    ("train_step", 5, 0.1),
    ("train_evaluation", 1, 0.1),
    ("stage_done", 1, 0.5),
    ("equalized", 1, 0.5),
    ("calibrated", 1, 0.3),
    ("train_step", 5, 0.1),
    ("train_step", 5, 0.1),
    ("stage_done", 1, 0.5),
    ("export", 1, 3.0),
    ("runtime", 1, 1.0),
    ("verified", 1, 0.1),
]
ENOUGH = 12  # events of one process: those it was to die at may lie behind the run by then


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return support.write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    support.finish(recipe, folder)
    return folder


def kill(recipe: Path, folder: Path, moment: Moment) -> str | None:
    """Start the run and kill it at `moment`; the last event that it had written by then, None when it ended before."""
    event, nth, delay = moment
    before = len(support.events(folder))
    process = support.start(recipe, folder)
    deadline = time.monotonic() + 600
    try:
        while process.poll() is None and event:
            names = [item["event"] for item in support.events(folder)[before:]]
            if names.count(event) >= nth or len(names) >= ENOUGH:
                break
            assert time.monotonic() < deadline
            time.sleep(0.02)
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


def kills_then_finish(recipe: Path, whole: Path, folder: Path, moments: list[Moment]) -> list[str]:
    """Kill the run at each of `moments`, then let it end like `whole`; where it was each time that it died."""
    found = [kill(recipe, folder, moment) for moment in moments]
    hits = [hit for hit in found if hit is not None]
    support.finish(recipe, folder)
    support.same_results(whole, folder)
    return hits


def test_three_kills(recipe: Path, whole: Path, tmp_path: Path) -> None:
    hits = kills_then_finish(
        recipe, whole, tmp_path / "run", [("train_step", 3, 0.0), ("calibrated", 1, 0.0), ("export", 1, 0.1)]
    )
    assert len(hits) == 3
    notes = [item.get("message", "") for item in support.events(tmp_path / "run")]
    assert len([note for note in notes if note.startswith("taken over from process") and "was killed" in note]) == 3


@pytest.mark.slow
def test_many_kills(recipe: Path, whole: Path, tmp_path: Path) -> None:
    hits: list[str] = []
    for seed in range(1, 5):
        rng = random.Random(seed)
        moments = [(event, rng.randint(min(nth, 1), nth), rng.uniform(0, delay)) for event, nth, delay in MOMENTS]
        hits += kills_then_finish(recipe, whole, tmp_path / f"run{seed}", moments)
        if len(hits) >= 20:
            break
    print(f"{len(hits)} kills, after: {', '.join(hits)}")
    assert len(hits) >= 20 and {"start", "train_step", "export"} <= set(hits)


def wait_for_event(folder: Path, event: str, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while [item["event"] for item in support.events(folder)].count(event) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr and process.stderr.read()
        time.sleep(0.02)


def test_ctrl_c_saves_the_step_and_the_folder_is_held_until_then(
    recipe: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    # A terminal sends Ctrl-C to all processes of the command, so to the data loading workers as well.
    process = support.start(recipe, folder, "data.workers=2", start_new_session=True)
    wait_for_event(folder, "train_step", 2, process)
    os.killpg(process.pid, signal.SIGSTOP)  # it shall not end its training in the meantime
    assert main(["run", str(recipe), "--dir", str(folder)]) == 2
    os.killpg(process.pid, signal.SIGCONT)
    assert f"is in use by process {process.pid} on {socket.gethostname()} since 20" in capsys.readouterr().err
    os.killpg(process.pid, signal.SIGINT)
    _, messages = process.communicate(timeout=600)
    assert process.returncode == 130 and "Traceback" not in messages
    last = messages.splitlines()[-1]
    found = re.fullmatch(
        r"vitcompress: error: interrupted in Prune, step (\d+) of 12 is saved; continue with: vitcompress (run .*)",
        last,
    )
    assert found is not None, messages
    assert (folder / "stages" / "01-prune" / "state" / f"step-{int(found[1]):08d}" / "state.json").is_file()
    done = subprocess.run(
        [sys.executable, "-m", "act", *shlex.split(found[2])],
        env=support.ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0 and f"continuing after step {found[1]}" in done.stderr
    assert "taken over" not in done.stderr  # the first process let go by itself
    for name in ("model.safetensors", "arch.json"):
        assert (folder / "artifact" / name).read_bytes() == (whole / "artifact" / name).read_bytes()


def test_sigterm_outside_of_training_ends_with_one_line(recipe: Path, tmp_path: Path) -> None:
    process = support.start(recipe, tmp_path / "run")
    wait_for_event(tmp_path / "run", "run", 1, process)
    process.terminate()
    _, messages = process.communicate(timeout=600)
    assert process.returncode == 143 and "Traceback" not in messages
    assert messages.splitlines()[-1] == (
        f"vitcompress: error: terminated; continue with: vitcompress run {recipe} --dir {tmp_path / 'run'}"
    )
    assert (tmp_path / "run" / ".lock").read_text() == ""
