"""A recipe carries its results; running it again says which of them hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from act.cli.main import main
from act.errors import InputError
from act.recipe import text
from act.recipe.load import load_recipe, recipe_from_dict
from act.recipe.paths import list_recipes
from act.run.environment import describe, machine_fingerprint
from act.run.folder import RunFolder
from act.run.report import read_report
from act.share.reproduce import TOLERANCES, check_figures
from act.share.summary import headline

# The embedded example, on a few of its images.
LIMITS = ["data.limit_train=64", "data.limit_val=50", "export.benchmark=false"]
PTQ = ["~Prune", "~QuantAware", "~Distillation", "~TrainConfig", "~target", "QuantPost={images: 16}"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "quickstart"
    assert main(["run", "quickstart", "--dir", str(folder), *LIMITS, *PTQ]) == 0
    return folder


@pytest.fixture
def frozen(run: Path, tmp_path: Path) -> Path:
    assert main(["recipes", "freeze", str(run), "-o", str(tmp_path / "small.yaml")]) == 0
    return tmp_path / "small.yaml"


def tamper(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = text.parse(path.read_text(), "recipe").values
    change(values["results"])
    path.write_text(text.dump(values))


def reproduce(capsys: pytest.CaptureFixture[str], path: Path, run: Path, *words: str, code: int) -> dict[str, Any]:
    """Lines by what they are about. The run folder is that of the finished run, whose stages are then used again."""
    capsys.readouterr()
    assert main(["reproduce", str(path), "--dir", str(run), "--json", *words]) == code
    printed = json.loads(capsys.readouterr().out)
    assert printed["holds"] is (code == 0)
    return {line["what"]: line for line in printed["results"]}


def test_a_frozen_recipe_holds_what_was_measured(frozen: Path, run: Path) -> None:
    recipe, report = load_recipe(frozen), read_report(RunFolder(run))
    assert report is not None and recipe.name == "small"
    results = recipe.results
    assert results["command"] == "vitcompress reproduce small.yaml"
    assert results["baseline"]["top1"] == report["baseline"]["top1"]
    assert results["artifacts"][0]["bytes"] == (run / "artifact" / "model.onnx").stat().st_size
    assert results["model"]["weights"] == report["model"]["weights"]
    assert results["data"]["val"]["images"] == 50
    assert results["environment"]["machine"] == machine_fingerprint(describe())


def test_reproduced_anew_from_the_recipe_alone(
    frozen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = reproduce(capsys, frozen, tmp_path / "again", code=0)
    assert {lines[name]["verdict"] for name in ("settings", "model weights", "data.train", "data.val")} == {"holds"}
    assert {lines[name]["verdict"] for name in ("baseline top1", "onnx top1", "onnx agreement", "onnx bytes")} == {
        "holds"
    }
    assert (tmp_path / "again" / "report.json").is_file()


@pytest.mark.parametrize(
    ("figure", "change"), [("top1", 1.0), ("top1", -1.0), ("agreement", -3.0), ("bytes", 20_000), ("macs", 1)]
)
def test_a_tampered_result_fails(
    figure: str, change: float, frozen: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(results: dict[str, Any]) -> None:
        results["artifacts"][0][figure] += change

    tamper(frozen, edit)
    lines = reproduce(capsys, frozen, run, code=3)
    assert [line["what"] for line in lines.values() if line["verdict"] == "FAILS"] == [f"onnx {figure}"]
    if figure == "top1":
        reproduce(capsys, frozen, run, "--tolerance", "top1=2", code=0)


def test_a_tampered_status_fails(frozen: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tamper(frozen, lambda results: results.update(status="met"))
    assert reproduce(capsys, frozen, run, code=3)["status"]["verdict"] == "FAILS"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("data.val", ["data.val=builtin:digits.tar/train"]),
        ("model weights", ["model.checkpoint=null"]),
        ("settings", ["QuantPost.images=8"]),
    ],
)
def test_other_inputs_are_said_before_anything_runs(
    what: str, words: list[str], frozen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "none"
    lines = reproduce(capsys, frozen, folder, *words, code=3)
    assert lines[what]["verdict"] == "FAILS" and "onnx top1" not in lines and not folder.exists()


def test_anyway_runs_with_other_images(frozen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = reproduce(capsys, frozen, tmp_path / "other", "--anyway", "data.limit_val=20", code=3)
    assert lines["settings"]["verdict"] == lines["data.val"]["verdict"] == "FAILS"
    assert lines["onnx bytes"]["verdict"] == "holds"


def test_speed_ups_count_on_the_same_machine_only() -> None:
    environment = describe()
    report = {
        "environment": environment,
        "artifacts": [{"format": "onnx", "speedup": {"onnxruntime": {"1": 1.0, "8": 1.5}}}],
    }
    rows = [{"format": "onnx", "speedup": {"onnxruntime": {"1": 1.3, "8": 1.8}}}]
    here = {"artifacts": rows, "environment": {"machine": machine_fingerprint(environment)}}
    verdicts = {line.what: line.verdict for line in check_figures(here, report, TOLERANCES)}
    assert verdicts == {"onnx speedup_batch_1": "FAILS", "onnx speedup_batch_8": "holds"}
    for elsewhere in ({"artifacts": rows, "environment": {"machine": "0" * 16}}, {"onnx": {"speedup_batch_8": 9.0}}):
        assert {line.verdict for line in check_figures(elsewhere, report, TOLERANCES)} == {"not compared"}
    other = environment | {"cpu": "another"}
    assert machine_fingerprint(other) != machine_fingerprint(environment)
    assert machine_fingerprint(environment | {"memory_gb": 1}) == machine_fingerprint(environment)


def test_figures_that_the_run_does_not_have_are_said() -> None:
    report = {"environment": describe(), "baseline": {"top1": 90.0}, "stages": [{"name": "prune", "top1": 89.0}]}
    results = {"prune": {"top1": 89.2}, "tinyimagenet": {"top1": 60.0}, "baseline": {"top1": 90.6, "own": 1}}
    lines = {line.what: line.verdict for line in check_figures(results, report, TOLERANCES)}
    assert lines == {"prune top1": "holds", "tinyimagenet top1": "not compared", "baseline top1": "FAILS"}


def test_no_results_no_reproduction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: {name: vit_tiny_patch16_224}\nPrune: {}\n")
    assert main(["reproduce", str(path)]) == 2
    assert "records no results; fill them in with" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["top1", "top1=x", "top1=-1", "top5=1", "top1=nan", "top1=inf"])
def test_bad_tolerances(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "quickstart", "--tolerance", word]) == 2
    assert f"--tolerance: {word}; allowed: NAME=NUMBER" in capsys.readouterr().err


def test_missing_data_is_named(frozen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", str(frozen), "data.val=null"]) == 2
    assert "data.val: not given; the results were measured with 50 images there" in capsys.readouterr().err


def test_only_a_finished_run_can_be_frozen(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "freeze", str(tmp_path), "-o", str(tmp_path / "x.yaml")]) == 2
    assert "no finished run" in capsys.readouterr().err and not (tmp_path / "x.yaml").exists()
    (tmp_path / "y.yaml").write_text("mine")
    assert main(["recipes", "freeze", str(run), "-o", str(tmp_path / "y.yaml")]) == 2
    assert (tmp_path / "y.yaml").read_text() == "mine"


def test_results_of_the_shipped_recipes_fit_the_schema() -> None:
    assert sum(bool(load_recipe(path).results) for path in list_recipes()) > 3


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ({}, ""),
        ({"baseline": 3, "artifacts": [{"format": "onnx", "top1": 60.0}]}, ""),
        ({"baseline": {"bytes": 30, "top1": 70.0}}, ""),
        ({"baseline": {"bytes": 30}, "artifacts": [{"format": "onnx", "bytes": 10}, {"format": "x"}]}, "3.0x smaller"),
        ({"baseline": {"top1": 70}, "artifacts": [{"format": "onnx", "top1": 69.5}]}, "top1 70.00 -> 69.50"),
    ],
)
def test_the_headline_of_what_is_recorded(results: dict[str, Any], words: str) -> None:
    recipe = recipe_from_dict({"model": {"name": "vit_tiny_patch16_224"}, "results": results})
    assert headline(recipe.results) == words


@pytest.mark.parametrize(
    ("results", "problem"),
    [
        ({"status": "good"}, "results.status: 'good' is unknown; allowed: met, missed, no_target"),
        ({"command": 3}, "results.command: expected text"),
        ({"settings": "abc"}, "results.settings: 'abc' is no sha256"),
        ({"model": {"weights": "../x"}}, "results.model.weights: '../x' is no sha256"),
        ({"model": {}}, "results.model.weights: missing"),
        ({"data": {"val": {"fingerprint": "0"}}}, "results.data.val.fingerprint: '0' is no sha256"),
        ({"data": {"val": 3}}, "results.data.val: expected a mapping"),
        ({"onnx": {"top1": "96"}}, "results.onnx.top1: '96' is no figure"),
        ({"onnx": "fast"}, "results.onnx: 'fast': neither a figure nor a row of figures"),
        ({"artifacts": {"top1": 1}}, "results.artifacts: expected a list"),
        ({"artifacts": [{"top1": 1}]}, "results.artifacts[0]"),
        (
            {"stages": [{"name": "prune", "speedup": {"a": {"1": "x"}}}]},
            "results.stages[0].speedup.a.1: expected a number, got 'x'",
        ),
        ({"onnx": {"speedup": {"onnxruntime": 2.0}}}, "results.onnx.speedup.onnxruntime: expected a mapping, got 2.0"),
        ({"onnx": {"speedup": {"a": {"1": {"2": 3}}}}}, "results.onnx.speedup.a.1: expected a number"),
        ({"speedup": {"batch_1": 2.0}}, "results.speedup: {'batch_1': 2.0}: neither a figure nor a row of figures"),
        ({"stages": [{"name": "", "top1": 1}]}, "results.stages[0]"),
        ({"onnx": {"bytes": 10**400}}, "results.onnx.bytes: a number too large to use"),
        ({"environment": {"user": "me"}}, "results.environment.user: unknown key"),
    ],
)
def test_bad_results(results: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError) as caught:
        recipe_from_dict({"model": {"name": "vit_tiny_patch16_224"}, "results": results})
    assert any(problem in line for line in caught.value.problems), caught.value.problems
