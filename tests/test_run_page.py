"""The report page: what it says, that it is whole, and what a real browser makes of it."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from page_support import CHROMIUM, NO_BROWSER, check_whole, events, full_report, look

from act.run.page import render
from act.run.page.curves import loss_series, trained
from act.run.page.document import document
from act.run.page.parts import duration
from act.run.page.plots import line, ticks
from act.run.page.scatter import points_of, relative_points
from act.run.page.summary import comparison, verdict

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)


def test_the_verdict_has_the_three_numbers_of_the_file_that_goals_go_by() -> None:
    report = full_report()
    size = "3.67x smaller (22.00 MB → 6.00 MB)"
    speed = "3.50x as fast (150.0 → 42.9 ms, OpenVINO, batch 8)"
    assert verdict(report) == f"Top-1 68.00 → 67.20 (-0.80), {size}, {speed}."
    del report["judged"]
    assert "2.50x as fast (20.0 → 8.0 ms, ONNX Runtime, batch 1)." in verdict(report)
    for item in report["artifacts"]:
        del item["latency"], item["speedup"], item["top1"]
    report["metric"] = "agreement"
    assert verdict(report) == f"Agreement with the original 90.00, {size}; not timed."
    assert verdict(report | {"artifacts": []}) == "No file was exported."


@pytest.mark.parametrize(
    ("params", "change"), [(2_000_000, "60.0 % fewer"), (5_020_000, "0.4 % more"), (5_001_000, None)]
)
def test_parameters_are_fewer_or_more(params: int, change: str | None) -> None:
    report = full_report()
    report["baseline"]["params"] = 5_000_000
    for item in report["artifacts"]:
        item["params"] = params
    assert {row[0]: row[3] for row in comparison(report)}.get("parameters (M)") == change


def test_the_verdict_comes_first_and_sections_without_content_are_left_out() -> None:
    page = render(full_report(), "name: x", events())
    check_whole(page)
    order = ['class="verdict"', "Before and after", "Accuracy and latency", "Stages", ">Layers<", "Layers left"]
    order += ["Training", "Attempts", "Exported files", "What must hold", ">Recipe<", ">Environment<"]
    places = [page.index(word) for word in order]
    assert places == sorted(places)
    assert "✓ every goal is met" in page and '<b class="met">✓ met</b> top1 68.00 -&gt; 67.00' in page
    bare = full_report() | {"attempts": [], "layers": None, "goals": [], "status": "no_target"}
    page = render(bare, "", [])
    check_whole(page)
    assert not any(word in page for word in (">Attempts<", ">Layers<", ">Training<"))
    assert "The recipe sets no goal." in page


def test_a_curve_of_one_point_is_a_dot() -> None:
    assert line([(3.0, 4.0)], "red", title="loss").startswith('<circle cx="3.0" cy="4.0"')
    assert line([(3.0, 4.0), (5.0, 6.0)], "red").startswith("<polyline")


def test_curves_are_those_of_the_models_that_the_report_is_on() -> None:
    def steps(stage: str, value: float, *numbers: int) -> list[dict[str, Any]]:
        return [{"event": "train_step", "stage": stage, "step": n, "losses": {"soft": value}} for n in numbers]

    run, prune, quant = {"event": "run"}, {"event": "stage", "name": "prune"}, {"event": "stage", "name": "quant_aware"}
    killed = [run, prune, *steps("Prune", 9.0, 10, 20, 30)]
    told = [run, prune, *steps("Prune", 1.0, 10, 20), quant, *steps("QuantAware", 1.0, 10, 20)]
    resumed = [run, prune, quant, {"event": "train_resumed", "step": 10}, *steps("QuantAware", 2.0, 20, 30)]
    attempt = [{"event": "attempt"}, prune, quant, *steps("QuantAware", 5.0, 10)]
    events = killed + told + steps("Distillation", 7.0, 10) + resumed + attempt
    report: dict[str, Any] = {"stages": [{"name": "prune"}, {"name": "quant_aware"}]}
    found = loss_series(trained(events, report))
    assert found == {
        "Prune": {"soft": [(10, 1.0), (20, 1.0)]},
        "QuantAware": {"soft": [(10, 1.0), (20, 2.0), (30, 2.0)]},
    }
    second = loss_series(trained(events, report | {"kept": 2}))
    assert second == {"Prune": found["Prune"], "QuantAware": {"soft": [(10, 5.0)]}}


def test_stages_say_what_they_cost_and_bought() -> None:
    page = render(full_report(), "", [])
    row = re.search(r"<tr><td>prune</td>(.*?)</tr>", page)
    assert row is not None
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row[0])
    assert cells == ["prune", "66.00", "-2.00", "91.00", "2 of 14", "1 h 06 min", "500", "2.00", "42.0", "2,900 MiB"]
    assert ">+1.10<" in page  # quantisation, against the stage before
    assert (
        "A step of quant_aware: 2.00 s, waiting for images 5 %, forward 20 %, teachers and losses 20 %, backward 50 %, "
        "update of weights and masks 5 %." in page
    )
    old = full_report()
    for stage in old["stages"]:
        del stage["epochs"], stage["images_per_second"], stage["step_seconds"]
    assert "A step of" not in render(old, "", [])
    assert "images/s" not in render(old, "", []).partition("Stages")[2].partition("</table>")[0]


def test_remarks_of_a_stage_stand_with_the_verdict() -> None:
    report = full_report()
    report["stages"][1]["remarks"] = ["QuantAware.activation_bits: 4 bits are a <simulation>"]
    top = render(report, "", []).partition("</header>")[0]
    assert "<p class=soft>QuantAware.activation_bits: 4 bits are a &lt;simulation&gt;.</p>" in top


def test_equal_reasons_are_one_line() -> None:
    page = render(full_report(), "", [])
    lines = re.findall(r"<li>12 layers, <code>(.*?)</code>: attention products", page)
    assert lines == ["blocks.{0-11}.attn"] * 2


def test_heat_maps_say_what_each_layer_is() -> None:
    page = render(full_report(), "", [])
    for title in (
        "blocks.0.qkv: 50.00",
        "blocks.1.qkv: removed",
        "blocks.2.fc2: 4.00",
        "blocks.3.proj: 15.00",
        "head: 32·8",
    ):
        assert f"<title>{title}</title>" in page, title
    assert page.count("<tr><td>blocks.1.") == 6 and "All 74 products" in page
    plain = full_report()
    for entry in plain["layers"]["entries"]:
        entry |= {"zeros": 0.0, "bits": [32, 32], "macs": entry["macs_before"]}
    page = render(plain, "", [])
    assert not any(f"<b>{name}</b>" in page for name in ("Zero weights", "Bits", "Work removed"))
    assert "<b>Output error</b>" in page


def test_points_are_the_original_every_file_and_other_attempts() -> None:
    report = full_report()
    first = [point for point in points_of(report) if point.batch == "1"]
    assert [(p.group, p.name, p.time, p.value, p.original) for p in first] == [
        ("ONNX Runtime", "original", 20.0, 68.0, True),
        ("OpenVINO", "original", 20.0, 68.0, True),
        ("ONNX Runtime", "onnx", 8.0, 67.0, False),
        ("OpenVINO", "openvino", pytest.approx(20 / 3.5), 67.2, False),
        ("ONNX Runtime", "attempt 1, onnx", pytest.approx(20 / 3), 64.0, False),
    ]
    relative = {(p.name, p.batch): p.time for p in relative_points(report, "mine")}
    assert relative["original", "8"] == 100 and relative["onnx", "8"] == pytest.approx(40)


@pytest.mark.parametrize("low", [-3.0, 0.0, 0.013, 61.9])
@pytest.mark.parametrize("span", [1e-6, 0.3, 1.0, 7.0, 12345.0])
def test_ticks_are_round_few_and_inside(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 2 <= len(found) <= 6
    assert all(low - 1e-6 * span <= value <= low + span * (1 + 1e-6) for value in found)
    steps = [after - before for before, after in itertools.pairwise(found)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)


def test_durations() -> None:
    assert [duration(s) for s in (0.25, 59.4, 61, 3599.7, 7325)] == [
        "0.2 s",
        "59 s",
        "1 min 01 s",
        "1 h 00 min",
        "2 h 02 min",
    ]


@needs_browser
@pytest.mark.parametrize("width", [390, 1100])
def test_a_browser_draws_every_figure_within_the_page(width: int, tmp_path: Path) -> None:
    found, console = look(render(full_report(), "name: " + "x" * 300, events()), tmp_path, width)
    assert console == "" and found["requests"] == []
    assert found["view"] == width and found["width"] <= width  # no scrolling sideways
    names = [figure["name"] for figure in found["figures"]]
    heat = ["Zero weights", "Bits", "Work removed", "Output error"]
    assert names == ["Batch 1", "Batch 8", *heat, "Prune", "QuantAware", "Prune", "QuantAware"]
    for figure in found["figures"]:
        assert 250 < figure["width"] <= width and figure["height"] > 40, figure
        assert figure["marks"] >= 3 and figure["outside"] == 0, figure
    assert len(found["bars"]) == 6 and min(found["bars"]) > 5


@needs_browser
def test_a_browser_sees_the_theme_and_its_errors(tmp_path: Path) -> None:
    page = render(full_report(), "", [])
    dark, _ = look(page, tmp_path, 800, "--blink-settings=preferredColorScheme=0")
    light, _ = look(page, tmp_path, 800, "--blink-settings=preferredColorScheme=1")
    assert (light["colour"], dark["colour"]) == ("rgb(243, 245, 248)", "rgb(17, 21, 26)")
    # The test above can fail: a page that is too wide and has an error in it is noticed.
    bad = document("bad", ['<div style="width:2000px">x</div><script>undefinedName()</script>'])
    found, console = look(bad, tmp_path, 390)
    assert found["width"] >= 2000 and "undefinedName" in console
