"""The loop of `vitcompress search`, on reports that are made up."""

from __future__ import annotations

import itertools
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from search_support import make_files, raising, search

from act.cli.main import main
from act.errors import ActError, InputError
from act.recipe.load import load_recipe, recipe_from_dict, recipe_hash
from act.recipe.schema import Recipe
from act.search import worker as loop
from act.search.figures import best
from act.search.queue import TRIES, Budget, Queue
from act.search.space import Space, read_space

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_files(tmp_path_factory.mktemp("files"))


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
    monkeypatch.setattr(loop, "run", partial(raising, ActError("no such device")))
    here = queue(tmp_path, "seed: {int: [0, 99]}\n")
    with pytest.raises(ActError, match="3 trials failed and none succeeded; the last one: no such device"):
        go(here, 50)
    assert len(here.trials()) == 3


def test_a_trial_that_ends_every_process_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "run", partial(raising, SystemExit()))  # as good as killed: nothing is recorded
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
