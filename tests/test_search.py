"""`vitcompress search`: real runs of a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from search_support import make_files, raising, search

import act.run.deliver as deliver
import act.run.timing as timing
from act.cli.main import main
from act.recipe.load import load_recipe, recipe_hash
from act.run.log import read_events
from act.search import worker as loop
from act.search.queue import Budget, Queue
from act.search.space import read_space

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module", autouse=True)
def short_timing() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deliver, "time_in_turns", partial(timing.time_in_turns, seconds=0.0, rounds=(2, 2)))
        yield


def found(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "search.json").read_text())
    return result


@pytest.fixture(scope="module")
def done(files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of three trials, interrupted in the first of them and continued."""
    folder = tmp_path_factory.mktemp("search") / "s"
    with pytest.MonkeyPatch.context() as patch:

        def interrupted(*args: object, **kwargs: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("act.run.runner.deliver", interrupted)
        assert main(search(files, folder, "--trials", "3")) == 130
    assert main(search(files, folder, "--trials", "3")) == 0
    return folder


def test_an_interrupted_trial_is_continued_where_it_stopped(done: Path) -> None:
    assert [trial["number"] for trial in found(done)["trials"] if trial["state"] == "met"] == [0, 1, 2]
    events = read_events(done / "trials" / "0000" / "events.jsonl")
    assert [event["type"] for event in events if event["event"] == "error"] == ["KeyboardInterrupt"]
    assert any("1/2] prune: done before, kept" in event.get("message", "") for event in events)
    assert not any("done before" in event.get("message", "") for event in events[: len(events) // 3])


def test_an_interruption_says_how_to_continue(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "run", partial(raising, KeyboardInterrupt()))
    command = search(files, tmp_path / "s")
    assert main(command) == 130
    assert f"interrupted; continue with: vitcompress {' '.join(command)}" in capsys.readouterr().err


def test_best_is_a_recipe_with_its_results(done: Path) -> None:
    result, frozen = found(done), load_recipe(done / "best.yaml")
    chosen = result["trials"][result["best"]]
    assert frozen.results["trial"] == chosen["number"] and frozen.results["searched"] == chosen["point"]
    assert frozen.results["artifacts"][0]["bytes"] == chosen["figures"]["bytes"]
    assert frozen.strategies["QuantPost"].weight_bits == chosen["point"]["QuantPost.weight_bits"]
    ran = load_recipe(done / "trials" / f"{chosen['number']:04d}" / "recipe.yaml")
    assert recipe_hash(frozen) == recipe_hash(ran) and frozen.name == "tiny-best"
    report = json.loads((done / "trials" / f"{chosen['number']:04d}" / "report.json").read_text())
    assert chosen["figures"]["agreement"] == report["artifacts"][0]["agreement"]
    assert chosen["figures"]["latency"] == report["artifacts"][0]["latency"]["onnxruntime"]["1"]["median_ms"]


def test_trials_share_the_baseline_and_equal_stages(done: Path) -> None:
    originals = [done / "trials" / f"{number:04d}" / "baseline" / "model_fp32.onnx" for number in range(3)]
    assert len({path.stat().st_ino for path in originals}) == 1  # three names of one file
    weights = [done / "trials" / f"{number:04d}" / "stages" / "01-prune" / "model.safetensors" for number in range(3)]
    assert len({path.stat().st_ino for path in weights}) == 1  # only what follows pruning differs
    last = [done / "trials" / f"{number:04d}" / "stages" / "02-quant-post" / "model.safetensors" for number in range(3)]
    assert len({path.stat().st_ino for path in last}) == 3


def test_the_same_command_shows_the_table_and_runs_nothing(
    done: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "run", partial(raising, AssertionError("nothing may run")))
    assert main(search(files, done, "--trials", "3")) == 0
    lines = capsys.readouterr().out.splitlines()
    columns = ["trial", "weight_bits", "top1", "agreement", "ms", "speedup", "MB", "result"]
    assert lines[1].split() == columns
    assert len([line for line in lines if " met" in line]) == 3
    assert len([line for line in lines if "best" in line and "front" in line]) == 1
    assert str(done / "best.yaml") in lines[-1]
    assert main(search(files, done, "--trials", "3", "--json")) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == found(done) and len(printed["trials"]) == 3


def test_the_picture_has_every_trial(done: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = (done / "pareto.svg").read_text()
    texts = ["".join(node.itertext()) for node in ElementTree.fromstring(picture).iter() if node.tag.endswith("}text")]
    assert {"0", "1", "2", "original", "best"} <= set(texts)
    assert any("onnxruntime, median" in text for text in texts)


def test_two_processes_share_a_search_and_a_killed_one_is_replaced(files: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "s"
    quick = ["--objectives", "accuracy,bytes", "--trials", "2", "export.benchmark=false"]
    command = [sys.executable, "-m", "act", *search(files, folder, *quick)]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(folder / "trials" / "0000" / "settings.json", killed)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    base = load_recipe(files[0], ["export.benchmark=false"])
    here = Queue(folder, read_space(files[1], base), ["accuracy", "bytes"], None, "search", "auto")
    taken = here.take(Budget(2, None), lambda text: None)
    assert taken is not None and taken.trial.number == 0 and taken.again
    # This process holds the first trial; the other one leaves it alone and runs the next.
    other = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert other.returncode == 0, other.stderr
    states = [trial["state"] for trial in found(folder)["trials"]]
    assert [state for state in states if state != "passed_over"] == ["running", "met"]
    with taken.lock:
        here.tell(taken.trial, loop.run_trial(here, taken))
    trials = [trial for trial in here.trials() if trial.state != "passed_over"]
    assert [trial.state for trial in trials] == ["met"] * 2 and here.take(Budget(2, None), lambda text: None) is None
    processes = [trial.place.split(" on ")[0] for trial in trials]
    assert processes[0] == f"process {os.getpid()}" and processes[1] != processes[0]
    assert trials[0].point != trials[1].point


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 900
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
