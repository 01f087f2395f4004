"""`vitcompress search`: real runs of a tiny model, and the loop itself on reports that are made up."""

from __future__ import annotations

import itertools
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
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import act.run.deliver as deliver
import act.run.timing as timing
from act.cli.main import main
from act.errors import ActError, InputError
from act.recipe.load import load_recipe, recipe_from_dict, recipe_hash
from act.recipe.schema import Recipe
from act.run.log import read_events
from act.search import worker as loop
from act.search.figures import Trial, best, check_objectives, default_objectives, front, violations
from act.search.queue import TRIES, Budget, Queue
from act.search.report import short
from act.search.space import Space, read_space
from act.search.study import without_password

pytest.importorskip("optuna")

RECIPE = """\
name: tiny
model:
  name: vit_tiny_patch16_224
  checkpoint: tiny.safetensors
  kwargs: {img_size: 16, patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}
data:
  train: builtin:digits.tar/train
  val: builtin:digits.tar/val
  workers: 0
  mean: [0.5]
  std: [0.5]
  batch_size: 16
  limit_val: 64
  calibration_images: 16
Distillation: {}
Prune: {align: 1}
QuantPost: {images: 16}
TrainConfig: {train_iter: 2}
target: {min_agreement: 5}
export: {benchmark_batches: [1], min_agreement: 0}
"""
SPACE = "QuantPost.weight_bits: {int: [4, 8], step: 2}\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    kwargs = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 10}
    save_file(timm.create_model("vit_tiny_patch16_224", **kwargs).state_dict(), folder / "tiny.safetensors")
    (folder / "tiny.yaml").write_text(RECIPE)
    (folder / "space.yaml").write_text(SPACE)
    return folder / "tiny.yaml", folder / "space.yaml"


@pytest.fixture(scope="module", autouse=True)
def short_timing() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deliver, "time_in_turns", partial(timing.time_in_turns, seconds=0.0, rounds=(2, 2)))
        yield


def search(files: tuple[Path, Path], folder: Path, *more: str) -> list[str]:
    return ["search", str(files[0]), "--space", str(files[1]), "--dir", str(folder), *more]


def found(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "search.json").read_text())
    return result


# Real runs.


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
    monkeypatch.setattr(loop, "run", partial(_raise, KeyboardInterrupt()))
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
    monkeypatch.setattr(loop, "run", partial(_raise, AssertionError("nothing may run")))
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


# The loop, on reports that are made up.


def _raise(error: BaseException, *args: object, **kwargs: object) -> Any:
    raise error


def made_up(recipe: Recipe, folder: Path, shared: Path) -> Any:
    """A report in which accuracy rises and speed falls with the bits, and a lower rate is better."""
    bits, rate = recipe.strategies["QuantPost"].weight_bits, recipe.train.learning_rate
    agreement, latency = 60.0 + 4 * bits - 1000 * rate, 1.0 + bits / 8
    goals = []
    for key, limit, value in (("min_agreement", recipe.target.min_agreement, agreement),):
        goals += [{"key": key, "limit": limit, "measured": value, "met": value >= limit, "text": ""}] if limit else []
    status = "no_target" if not goals else "met" if all(goal["met"] for goal in goals) else "missed"
    artifact = {"format": "onnx", "bytes": 100 * bits, "agreement": agreement, "top1": agreement / 2}
    artifact |= {
        "latency": {"onnxruntime": {"1": {"median_ms": latency}}},
        "speedup": {"onnxruntime": {"1": 4 / latency}},
    }
    before = {
        "top1": 50.0,
        "bytes": 3200,
        "params": 1,
        "macs": 1,
        "latency": {"onnxruntime": {"1": {"median_ms": 4.0}}},
    }
    report = {"status": status, "goals": goals, "baseline": before, "stages": [], "artifacts": [artifact]}
    hashes = {"settings_hash": "0" * 64, "model": {"weights": "0" * 64}, "data": {"roles": {}}}
    return SimpleNamespace(report=report | hashes | {"environment": {"vitcompress": "0", "packages": {}}})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "run", made_up)
    monkeypatch.setattr("gc.collect", lambda: 0)  # there are no models to collect


def queue(tmp_path: Path, text: str, sampler: str = "auto", target: dict[str, Any] | None = None) -> Queue:
    (tmp_path / "space.yaml").write_text(text)
    values = {"QuantPost": {}, "Prune": {}, "data": {"val": "builtin:digits.tar/val"}, "target": target or {}}
    base = recipe_from_dict(values | {"model": {"name": "vit_tiny_patch16_224"}})
    space: Space = read_space(tmp_path / "space.yaml", base)
    return Queue(tmp_path / "s", space, ["agreement", "latency"], None, "search", sampler)


def go(here: Queue, trials: int | None, hours: float | None = None) -> list[str]:
    lines: list[str] = []
    loop.work(here, Budget(trials, hours), lines.append, lambda: None)
    return lines


BITS = "QuantPost.weight_bits: {choice: [4, 6, 8]}\n"


@pytest.mark.usefixtures("fake")
def test_every_combination_is_tried_once_where_there_are_few(tmp_path: Path) -> None:
    here = queue(tmp_path, BITS + "Prune.criterion: {choice: [wanda, magnitude]}\n")
    lines = go(here, 20)
    points = [tuple(trial.point.values()) for trial in here.trials()]
    assert sorted(points) == sorted(itertools.product([4, 6, 8], ["wanda", "magnitude"]))
    assert points[0] == (8, "magnitude")  # the recipe itself comes first
    assert "every one of the 6 combinations was tried" in lines[-1]


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_no_sampler_runs_a_recipe_twice(sampler: str, tmp_path: Path) -> None:
    here = queue(
        tmp_path, BITS + "Prune: {choice: [off, {}]}\nPrune.criterion: {choice: [wanda, magnitude]}\n", sampler
    )
    go(here, 9)
    trials = here.trials()
    run = [trial for trial in trials if trial.done]
    assert len(run) == 9 and len({recipe_hash(here.space.recipe(trial.point)) for trial in run}) == 9
    # Without Prune its criterion means nothing: 3 of the 12 combinations are other ones in disguise.
    go(here, 20)
    assert len([trial for trial in here.trials() if trial.done]) == 9
    passed = [trial for trial in here.trials() if trial.state == "passed_over"]
    assert passed and all("the same recipe as trial" in trial.reason for trial in passed)


@pytest.mark.usefixtures("fake")
def test_folders_of_the_same_name_are_other_data(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "photos").mkdir(parents=True)
    here = queue(tmp_path, f"data.calibration: {{choice: [{tmp_path}/a/photos, {tmp_path}/b/photos]}}\n")
    go(here, 5)
    assert [trial.reason for trial in here.trials()] == ["", ""] and all(trial.done for trial in here.trials())


@pytest.mark.usefixtures("fake")
def test_ranges_are_searched_towards_the_target(tmp_path: Path) -> None:
    text = "QuantPost.weight_bits: {int: [2, 8]}\nTrainConfig.learning_rate: {float: [1e-4, 1e-2], log: true}\n"
    here = queue(tmp_path, text, "tpe", {"min_agreement": 84})
    go(here, 15)
    trials = here.trials()
    assert len(trials) == 15 and {trial.state for trial in trials} == {"met", "missed"}
    assert all(2 <= trial.point["QuantPost.weight_bits"] <= 8 for trial in trials)
    chosen = best(trials, ["agreement", "latency"], here.space.base)
    assert chosen is not None and chosen.state == "met" and chosen.figures["agreement"] >= 84
    fastest = min(trial.figures["latency"] for trial in trials if trial.state == "met")
    assert chosen.figures["latency"] == fastest  # what the target does not limit decides
    frozen = here.study.get_trials()
    assert all(("min_agreement" in trial.constraints) for trial in frozen)
    assert all(
        (trial.constraints["min_agreement"] <= 0) == (seen.state == "met")
        for trial, seen in zip(frozen, trials, strict=True)
    )


def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sometimes(recipe: Recipe, folder: Path, shared: Path) -> Any:
        bits = recipe.strategies["QuantPost"].weight_bits
        if bits == 6:
            raise RuntimeError("out of\nmemory")
        if bits == 4:
            raise InputError(["data.train: not there", "data.val: neither"])
        return made_up(recipe, folder, shared)

    monkeypatch.setattr(loop, "run", sometimes)
    here = queue(tmp_path, BITS)
    lines = go(here, 3)
    states = {trial.point["QuantPost.weight_bits"]: trial for trial in here.trials()}
    assert [states[bits].state for bits in (4, 6, 8)] == ["failed", "failed", "no_target"]
    assert states[4].reason == "data.train: not there; data.val: neither"
    assert states[6].reason == "RuntimeError: out of memory"
    assert "RuntimeError" in (here.path(states[6].number) / "error.txt").read_text()
    assert any("failed: RuntimeError: out of memory" in line for line in lines)


def test_a_search_whose_trials_all_fail_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "run", partial(_raise, ActError("no such device")))
    here = queue(tmp_path, "seed: {int: [0, 99]}\n")
    with pytest.raises(ActError, match="3 trials failed and none succeeded; the last one: no such device"):
        go(here, 50)
    assert len(here.trials()) == 3


def test_a_trial_that_ends_every_process_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "run", partial(_raise, SystemExit()))  # as good as killed: nothing is recorded
    for _ in range(TRIES):
        with pytest.raises(SystemExit):
            go(queue(tmp_path, BITS), 2)
    monkeypatch.setattr(loop, "run", made_up)
    here = queue(tmp_path, BITS)
    go(here, 2)
    assert [trial.state for trial in here.trials()] == ["failed", "no_target"]
    assert "ended its process 5 times" in here.trials()[0].reason


@pytest.mark.usefixtures("fake")
def test_no_trial_starts_when_the_time_is_over(tmp_path: Path) -> None:
    here = queue(tmp_path, BITS)
    assert "hours are over" in go(here, None, hours=1e-9)[-1] and here.trials() == []


@pytest.mark.usefixtures("fake")
def test_another_search_is_refused(tmp_path: Path) -> None:
    go(queue(tmp_path, BITS), 1)
    with pytest.raises(InputError, match=r"holds another search \(.*min_agreement: None -> 50"):
        queue(tmp_path, BITS, target={"min_agreement": 50})
    with pytest.raises(InputError, match=r"holds another search \(.*weight_bits"):
        queue(tmp_path, BITS.replace("6", "5"))
    assert len(queue(tmp_path, BITS).trials()) == 1


@pytest.mark.usefixtures("fake")
def test_any_storage_of_optuna_holds_a_search(tmp_path: Path) -> None:
    here = queue(tmp_path, BITS)
    url = f"sqlite:///{tmp_path}/trials.db"
    for folder in ("one", "two"):  # as two machines would, each with a folder of its own
        one = Queue(tmp_path / folder, here.space, ["agreement", "latency"], url, "mine", "auto")
        go(one, 2 if folder == "one" else 3)
    assert [trial.state for trial in one.trials()] == ["no_target"] * 3
    journal = Queue(tmp_path / "three", here.space, ["agreement"], str(tmp_path / "own.log"), "mine", "auto")
    go(journal, 1)
    assert (tmp_path / "own.log").is_file() and len(journal.trials()) == 1


# The command line.


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--trials", "0"], "--trials: 0; allowed: 1 to 1000000"),
        (["--hours", "-1"], "--hours: -1; allowed: above 0"),
        (["--study", "x"], "--study: names a study in --storage"),
        (["--objectives", "acuracy,latency"], "--objectives: 'acuracy' is unknown (did you mean accuracy?)"),
        (["--objectives", "accuracy,accuracy"], "accuracy is named twice"),
        (["--objectives", "accuracy,latency,bytes,speedup"], "4 names; allowed: one to three"),
        (["export.benchmark=false"], "export.benchmark: false, so nothing is timed"),
        (["target.batch=7"], "target.batch: 7 is not among export.benchmark_batches"),
        (["target.backend=tensorrt"], "target.backend: runs of this recipe are timed with onnxruntime on cpu"),
        (["data.val=null"], "--objectives: agreement needs data.val"),
        (["--storage", "nosuchdb://user:secret@host/x"], "--storage: nosuchdb://user:...@host/x cannot be opened"),
        (["--storage", "/nowhere/at/all.log"], "--storage: /nowhere/at/all.log cannot be opened"),
    ],
)
def test_bad_options(
    more: list[str], expected: str, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(search(files, tmp_path / "s", *more)) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == "" and expected in captured.err and "secret" not in captured.err
    assert all(line.startswith("vitcompress: error: ") for line in lines if "search in" not in line)


def test_a_folder_of_something_else_is_left_alone(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text("{}")
    assert main(search(files, tmp_path)) == 2
    assert "has files but no search in it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_without_optuna_it_says_what_to_install(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(search(files, Path("unused"))) == 2
    assert capsys.readouterr().err.splitlines() == [
        "vitcompress: error: search needs Optuna 5 or newer: pip install 'vitcompress[search]'"
    ]


@pytest.mark.usefixtures("fake")
def test_a_target_that_no_trial_meets_ends_with_3_and_keeps_the_best(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = tmp_path / "s"
    assert main(search(files, folder, "--trials", "3", "target.min_agreement=99.5")) == 3
    assert "no picture: matplotlib is missing" in capsys.readouterr().err and not (folder / "pareto.svg").exists()
    assert load_recipe(folder / "best.yaml").strategies["QuantPost"].weight_bits == 8  # misses it by less than 4 bits
    assert load_recipe(folder / "best.yaml").results["status"] == "missed"


# What is the best.


def trial(
    number: int, state: str = "met", goals: dict[str, tuple[float, float]] | None = None, **figures: float
) -> Trial:
    listed = [{"key": key, "limit": limit, "measured": value} for key, (limit, value) in (goals or {}).items()]
    return Trial(number, state, {}, {"metric": "top1", **figures}, {}, listed, "", {}, "", 0.0)


def target(**values: float) -> Recipe:
    return recipe_from_dict({"target": values})


def test_of_trials_that_meet_the_target_what_it_does_not_limit_decides() -> None:
    trials = [trial(0, accuracy=90.0, latency=5.0), trial(1, accuracy=92.0, latency=7.0), trial(2, "failed")]
    names = ["accuracy", "latency"]
    for limits, expected in (
        ({"max_drop": 3}, 0),
        ({"latency_ms": 9}, 1),
        ({"max_drop": 3, "latency_ms": 9}, 1),
        ({}, 1),
    ):
        chosen = best(trials, names, target(**limits))
        assert chosen is not None and chosen.number == expected, limits
    assert best([trial(0, "failed"), trial(1, "running")], names, target()) is None


def test_of_trials_that_all_miss_the_one_that_misses_by_least() -> None:
    trials = [
        trial(0, "missed", {"max_drop": (1.0, 3.0), "speedup": (2.0, 2.5)}, accuracy=90.0, latency=4.0),
        trial(1, "missed", {"max_drop": (1.0, 0.5), "speedup": (2.0, 1.0)}, accuracy=95.0, latency=9.0),
    ]
    chosen = best(trials, ["accuracy", "latency"], target(max_drop=1.0, speedup=2.0))
    assert violations(trials[0].goals) == {"max_drop": 2.0, "speedup": -0.25}
    assert violations(trials[1].goals) == {"max_drop": -0.5, "speedup": 0.5}
    assert chosen is trials[1]
    assert violations(trial(0, goals={"max_drop": (0.0, 0.3)}).goals) == {"max_drop": 0.3}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
@settings(deadline=None)
def test_the_front_is_what_nothing_surpasses(values: list[tuple[int, int]]) -> None:
    trials = [trial(number, accuracy=float(a), latency=float(b)) for number, (a, b) in enumerate(values)]
    kept = front(trials, ["accuracy", "latency"], target())
    points = set(values)
    expected = {p for p in points if not any(q != p and q[0] >= p[0] and q[1] <= p[1] for q in points)}
    assert {(int(t.figures["accuracy"]), int(t.figures["latency"])) for t in kept} == expected
    assert len(kept) == len(expected)  # of equal ones only the first


def test_objectives_follow_the_target() -> None:
    assert default_objectives(target()) == ["accuracy", "latency"]
    assert default_objectives(target(max_drop=1, speedup=1.5)) == ["accuracy", "speedup"]
    assert default_objectives(target(min_agreement=95, bytes=1000)) == ["agreement", "bytes"]
    with pytest.raises(InputError, match=r"accuracy needs data\.val"):
        check_objectives(["accuracy"], target())


def test_short_names_of_keys_differ() -> None:
    assert short(["Prune", "Prune.criterion", "TrainConfig.epochs", "TrainConfig.stages.Prune.epochs"]) == [
        *("Prune", "criterion", "TrainConfig.epochs", "Prune.epochs")
    ]


def test_passwords_are_not_shown() -> None:
    assert without_password("mysql://me:pw@db:33/x?pw=1") == "mysql://me:...@db:33/x?pw=1"
    assert without_password("sqlite:///a.db") == "sqlite:///a.db"
    assert without_password("mysql://me:pw@[db/x") == "mysql://me:...@[db/x"
