"""`vitcompress compare`: what it reads, what it says, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from page_support import CHROMIUM, NO_BROWSER, check_whole, full_report, look

from act.cli.main import main
from act.errors import InputError
from act.run.compare import differences, read_runs, rows
from act.run.page import render
from act.run.page.compare import compare_page

RECIPE = """\
name: {name}
model: {{name: vit_tiny_patch16_224}}
data: {{train: photos, limit_val: null}}
Prune: {{pattern: '2:4', align: 8}}
TrainConfig: {{epochs: {epochs}, stages: {{}}}}
results: {{status: met}}
"""


def folder(path: Path, epochs: int = 2, recipe: str = RECIPE, **changed: Any) -> Path:
    path.mkdir(parents=True)
    (path / "report.json").write_text(json.dumps(full_report(path.name, 2) | changed))
    (path / "recipe.yaml").write_text(recipe.format(name=path.name, epochs=epochs))
    return path


def test_other_weights_of_one_architecture_are_another_original(tmp_path: Path) -> None:
    one, two = (folder(tmp_path / name, model={"name": "vit", "weights": name * 3}) for name in ("one", "two"))
    [note] = read_runs([one, two])[1]
    assert note.startswith("runs of different originals (one vit_tiny_patch16_224 with weights oneoneon, two vit_tiny")


@pytest.mark.parametrize("section", ["model", "Prune"])
def test_a_damaged_recipe_is_one_line(tmp_path: Path, section: str) -> None:
    recipe = "".join(f"{section}: 5\n" if line.startswith(section) else f"{line}\n" for line in RECIPE.splitlines())
    broken = folder(tmp_path / "two", recipe=recipe)
    with pytest.raises(InputError, match=f"two/recipe.yaml: {section}: 5 is no section"):
        read_runs([folder(tmp_path / "one", recipe=RECIPE.replace("Prune", "TokenMerge")), broken])


def test_a_row_for_every_file_and_a_column_for_every_timing(tmp_path: Path) -> None:
    one = folder(tmp_path / "one")
    only = full_report()["artifacts"][:1]
    two = folder(tmp_path / "two", artifacts=only, status="missed")
    runs, notes = read_runs([one, two])
    columns, found = rows(runs)
    assert columns == [
        *("run", "file", "top1", "change", "agreement", "bytes", "smaller", "ONNX Runtime b1", "ONNX Runtime b8"),
        *("OpenVINO b1", "OpenVINO b8", "stages", "seconds"),
    ]
    first = ["one", "onnx", "67.00", "-1.00", "90.00", "6,000,000", "3.67x", "2.50x", "2.50x", "-", "-"]
    assert found[0] == [*first, "prune + quant_aware", "8000"]
    assert found[1][:3] == ["", "openvino", "67.20"] and found[1][9:] == ["3.50x", "3.50x", "", ""]
    assert found[2][:2] == ["two", "onnx"] and len(found) == 3 and notes == []


def test_no_change_has_no_minus(tmp_path: Path) -> None:
    report = full_report()
    for item in (*report["artifacts"], *report["stages"]):
        item["top1"] = report["baseline"]["top1"] - 1e-6
    same = folder(tmp_path / "same", artifacts=report["artifacts"], stages=report["stages"])
    runs, _ = read_runs([same, folder(tmp_path / "other")])
    assert rows(runs)[1][0][3] == "+0.00"
    page = render(runs[0].report, "", [])
    assert "+0.00" in page and "-0.00" not in page


def test_only_keys_that_differ_are_named(tmp_path: Path) -> None:
    quant = RECIPE.replace("Prune: {{pattern: '2:4', align: 8}}", "QuantPost: {{weight_bits: 4, activation_bits: 8}}")
    older = RECIPE.replace(", limit_val: null", "").replace(", stages: {{}}", "")
    folders = [folder(tmp_path / "a"), folder(tmp_path / "b", 3, quant), folder(tmp_path / "c", 2, older)]
    runs, _ = read_runs(folders)
    assert differences(runs) == [
        ("Prune", ["align: 8", "-", "align: 8"]),
        ("TrainConfig.epochs", ["2", "3", "2"]),
        ("QuantPost", ["-", "weight_bits: 4", "-"]),
    ]
    runs, _ = read_runs([folders[0], folders[2]])
    assert differences(runs) == []


def test_the_recipe_is_that_of_the_attempt_that_was_kept(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two")
    (two / "artifact").mkdir()
    (two / "artifact" / "recipe.yaml").write_text(RECIPE.format(name="two", epochs=9))
    assert differences(read_runs([one, two])[0]) == [("TrainConfig.epochs", ["2", "9"])]


def test_what_stands_in_the_way_is_said_and_still_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = folder(tmp_path / "one")
    other = full_report()
    two = folder(
        tmp_path / "two",
        data=other["data"] | {"fingerprint": "e" * 64},
        environment=other["environment"] | {"cpu": "another"},
    )
    assert main(["compare", str(one), str(two), str(one / ".")]) == 0
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 3 and all(line.startswith("warning: ") for line in lines)
    assert "given more than once" in lines[0] and "runs of different data (one ffffffff, two eeeeeeee)" in lines[1]
    assert "different processors" in lines[2]
    assert captured.out.splitlines()[0] == "2 runs" and "the recipes do not differ" in captured.out


def test_json_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(folder(tmp_path / "one")), str(folder(tmp_path / "deep" / "one", 3))]
    page = tmp_path / "new" / "compare.html"
    assert main(["compare", *folders, "--json", "-o", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in found["runs"]] == folders  # folders of one name are told apart by their paths
    assert found["differences"] == {"TrainConfig.epochs": dict(zip(folders, ["2", "3"], strict=True))}
    assert found["runs"][0]["artifacts"][1]["speedup"] == {"openvino": {"1": 3.5, "8": 3.5}}
    text = page.read_text()
    check_whole(text)
    assert text.count("<figure>") == 2 and "TrainConfig.epochs" in text and "3.50x as fast" in text


@pytest.mark.parametrize("case", ["alone", "twice", "missing", "unfinished", "damaged", "empty", "file"])
def test_bad_input_is_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = folder(tmp_path / "one")
    other = tmp_path / "other"
    if case in ("unfinished", "damaged", "empty"):
        other.mkdir()
    if case == "damaged":
        (other / "report.json").write_text("{")
    if case == "empty":
        (other / "report.json").write_text('{"schema": 1, "baseline": {}}')
    extra = {"alone": [], "twice": [one], "file": [folder(tmp_path / "two"), "-o", tmp_path]}.get(case, [other])
    assert main(["compare", str(one), *map(str, extra)]) == 2
    captured = capsys.readouterr()
    expected = {
        "alone": "one run alone",
        "twice": "one run alone",
        "missing": "no such folder",
        "unfinished": "has no report.json, so it is no finished run; finish it with: vitcompress run RECIPE",
        "damaged": "no report.json that can be read",
        "empty": "no report.json that can be read",
        "file": "a folder; name a file",
    }
    lines = captured.err.splitlines()
    assert (
        captured.out == "" and len(lines) == 1 and expected[case] in lines[0] and lines[0].startswith("vitcompress: ")
    )


@pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)
def test_a_browser_draws_the_pictures(tmp_path: Path) -> None:
    runs, notes = read_runs([folder(tmp_path / f"a_run_with_a_long_name_{number}", number + 1) for number in range(5)])
    found, console = look(compare_page(runs, notes), tmp_path, 390)
    assert console == "" and found["requests"] == [] and found["width"] <= 390
    assert [figure["name"] for figure in found["figures"]] == ["Batch 1", "Batch 8"]
    assert all(figure["marks"] >= 15 and figure["outside"] == 0 for figure in found["figures"])
