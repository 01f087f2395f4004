"""`vitcompress bench`: what is timed, what it is compared with, where the time goes, and the picture."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from export_support import SIZE, VIT, base_model, standard_artifact
from PIL import Image
from safetensors.torch import save_file

from act.backends import backends
from act.bench.picture import metric_of, picture
from act.bench.profile import by_kind, by_operator, onnxruntime_nodes, openvino_nodes
from act.bench.sources import BASELINE, PEER, Source, find_sources
from act.bench.timing import Row, compare
from act.bench.variants import Variant, half_precision, open_variants
from act.cli.main import main
from act.errors import InputError
from act.export import export_onnx
from act.run.atomic import sha256_file
from act.run.timing import SETTLE, order, time_rounds

OPENVINO = backends()["openvino"].available() is None
needs_openvino = pytest.mark.skipif(not OPENVINO, reason="openvino is not installed")


@cache
def fp32() -> Path:
    """The uncompressed model of `standard_artifact`."""
    path = Path(mkdtemp(prefix="vitcompress-test-")) / "model_fp32.onnx"
    export_onnx(base_model(**VIT), path, SIZE)
    return path


def run_folder(folder: Path, **entry: Any) -> Path:
    """A finished run as `find_sources` reads it."""
    artifact = folder / "artifact"
    artifact.mkdir(parents=True)
    (folder / "baseline").mkdir()
    shutil.copy(standard_artifact()[0] / "model.onnx", artifact)
    shutil.copy(fp32(), folder / "baseline" / "model_fp32.onnx")
    entry = {"format": "onnx", "path": "artifact/model.onnx", "top1": 70.0, "agreement": 95.0, **entry}
    report = {"schema": 1, "baseline": {"top1": 71.0}, "artifacts": [entry]}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def bench(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main(["bench", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def fake(name: str, role: str, backend: str, precision: str, **figures: float) -> Variant:
    runtime = backend if precision == "f32" else f"{backend} {precision}"
    return Variant(Source(name, Path(__file__), role, {runtime: figures}), backend, precision, lambda images: None)


def test_rounds_give_every_variant_every_place() -> None:
    names = ["a", "b", "c"]
    rounds = [order(names, number) for number in range(6)]
    for place in range(3):
        assert Counter(found[place] for found in rounds) == {"a": 2, "b": 2, "c": 2}
    # Both neighbours occur before each variant, so that none always finds the caches of the same one.
    assert len({(found[i], found[i + 1]) for found in rounds for i in range(2)}) == 6
    calls: list[str] = []
    taken = time_rounds({name: lambda _, name=name: calls.append(name) for name in names}, None, 4)
    assert [len(times) for times in taken.values()] == [4, 4, 4]
    # Before each timed call, calls that are not timed let the caches and threads settle.
    assert calls[-12 * (SETTLE + 1) :] == [
        name for number in range(4) for name in order(names, number) for _ in range(SETTLE + 1)
    ]


def test_speed_ups_are_against_the_same_runtime() -> None:
    base, file = ("base", BASELINE), ("file", "artifact")
    rows = [
        Row(fake(*base, "onnxruntime", "f32"), 1, 8.0, 9.0),
        Row(fake(*base, "openvino", "f32"), 1, 6.0, 7.0),
        Row(fake(*base, "openvino", "bf16"), 1, 3.0, 4.0),
        Row(fake(*file, "onnxruntime", "f32"), 1, 4.0, 4.0),
        Row(fake(*file, "openvino", "f32"), 1, 2.0, 2.0),
    ]
    compare(rows)
    assert [(row.vs_fp32, row.vs_half, row.vs_reference) for row in rows] == [
        (1.0, None, 1.0),
        (1.0, 0.5, 1.3333),
        (2.0, 1.0, 2.6667),
        (2.0, None, 2.0),
        (3.0, 1.5, 4.0),
    ]
    assert Row(rows[0].variant, 8, 4.0, 4.0).images_per_second == 2000


def test_run_folder_brings_its_files_figures_and_original(tmp_path: Path) -> None:
    found = find_sources([run_folder(tmp_path / "r")], None)
    assert [(source.name, source.role) for source in found] == [("original", "baseline"), ("r/model.onnx", "artifact")]
    assert found[0].figures["onnxruntime"] == {"top1": 71.0, "agreement": 100.0}
    assert found[1].figures == {"onnxruntime": {"top1": 70.0, "agreement": 95.0}}
    assert found[1].as_json()["sha256"] == {"model.onnx": sha256_file(found[1].path)}
    other = run_folder(tmp_path / "other")
    assert len(find_sources([tmp_path / "r", other], None)) == 3
    shutil.copy(standard_artifact()[0] / "model.onnx", other / "baseline" / "model_fp32.onnx")
    with pytest.raises(InputError, match="different originals; give --baseline"):
        find_sources([tmp_path / "r", other], None)
    assert find_sources([tmp_path / "r", other], fp32())[0].path == fp32()


def test_table_json_picture_and_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(tmp_path / "r")
    out, svg = tmp_path / "bench.json", tmp_path / "bench.svg"
    words = [folder, "--batch", "1,3", "--repeats", "2", "--threads", "1", "--json", out, "--picture", svg]
    code, printed, notes = bench(capsys, *words, "--profile", "nodes")
    assert code == 0
    found = json.loads(out.read_text())
    assert found["threads"] == 1 and found["rounds"] == 2 and found["input_size"] == [3, 32, 32]
    assert "cpu_features" in found["environment"] and "gpus" in found["environment"]
    rows = found["results"]
    half = found["half_precision"]
    assert half["onnxruntime"]["precision"] is None and "float32" in half["onnxruntime"]["reason"]
    runtimes = 2 if OPENVINO else 1
    halves = sum(item["precision"] is not None for item in half.values())
    assert len(rows) == 2 * (2 * runtimes + halves)
    for row in rows:
        assert row["images_per_second"] == pytest.approx(1000 * row["batch"] / row["median_ms"], rel=0.01)
        assert row["p90_ms"] >= row["median_ms"] > 0 and row["speedup_vs_fp32"] > 0
        assert (row["speedup_vs_half"] is not None) == (half[row["backend"]]["precision"] is not None)
    assert "vs FP32" in printed and "vs half" in printed and "none" in printed
    assert "onnxruntime has no half-precision baseline here" in notes
    assert "most expensive" in printed and "MatMulIntegerToFloat" in printed
    profile = found["profile"]["r/model.onnx in onnxruntime f32"]
    operators = {(item["operator"], item["kind"]): item for item in profile["operators"]}
    assert operators["MatMulIntegerToFloat", "int8"]["count"] == 9
    assert operators["QuantizeLinear", "int8/float"]["count"] > 0
    assert sum(item["share"] for item in profile["operators"]) == pytest.approx(100)
    drawn = ET.fromstring(svg.read_text())
    texts = [element.text for element in drawn.iter() if element.tag.endswith("title")]
    assert any("r/model.onnx, onnxruntime: 70.00 %" in str(text) for text in texts)


@needs_openvino
def test_openvino_profile_tells_integers_from_floats(capsys: pytest.CaptureFixture[str]) -> None:
    path = standard_artifact()[0] / "model.onnx"
    words = ["--backend", "openvino", "--batch", "2", "--repeats", "1", "--threads", "1", "--profile", "--json", "-"]
    code, printed, _ = bench(capsys, path, *words)
    assert code == 0
    profile = json.loads(printed)["profile"]["model.onnx in openvino f32"]
    integer = [item for item in profile["operators"] if item["kind"] == "int8" and "FullyConnected" in item["operator"]]
    assert sum(item["count"] for item in integer) == 9


def test_recorded_profiles_are_read() -> None:
    def event(name: str, operator: str, index: int, microseconds: int, given: str, made: str) -> dict[str, Any]:
        shapes = {"input_type_shape": [{given: [1]}, {"float": []}], "output_type_shape": [{made: [1]}]}
        details = {"op_name": operator, "node_index": str(index), **shapes}
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": details}

    events = [
        event("a", "MatMul", 0, 3000, "float", "float"),
        event("a", "MatMul", 0, 1000, "float", "float"),
        event("", "MatMul", 1, 2000, "float", "float"),
        event("", "QLinearSoftmax", 2, 4000, "int8", "int8"),
        event("q", "QuantizeLinear", 3, 2000, "float", "uint8"),
        event("p", "MatMulIntegerToFloat", 4, 6000, "uint8", "float"),
        event("s", "Shape", 5, 2000, "int64", "int64"),
        {"cat": "Session", "name": "model_run", "dur": 1, "args": {}},
    ]
    nodes = onnxruntime_nodes(events, runs=2)
    assert len(nodes) == 6
    sums = {(item.operator, item.kind): (item.count, item.milliseconds) for item in by_operator(nodes)}
    assert sums == {
        ("MatMulIntegerToFloat", "int8"): (1, 3.0),
        ("MatMul", "float"): (2, 3.0),
        ("QLinearSoftmax", "int8"): (1, 2.0),
        ("QuantizeLinear", "int8/float"): (1, 1.0),
        ("Shape", "other"): (1, 1.0),
    }
    assert by_kind(nodes) == pytest.approx({"int8": 50.0, "float": 30.0, "int8/float": 10.0, "other": 10.0})


def test_openvino_kernels_are_read() -> None:
    def info(kernel: str, status: str = "Status.EXECUTED") -> Any:
        time = SimpleNamespace(total_seconds=lambda: 0.001)
        return SimpleNamespace(node_name="n", node_type="t", exec_type=kernel, status=status, real_time=time)

    kernels = ["brgemm_avx512_I8", "jit_avx512_bf16", "ref_f32", "unknown_i32"]
    nodes = openvino_nodes([*map(info, kernels), info("undef", "Status.NOT_RUN")])
    assert [node.kind for node in nodes] == ["int8", "bf16", "float", "other"]
    assert nodes[0].milliseconds == pytest.approx(1.0)


def test_picture_escapes_and_names_what_it_leaves_out() -> None:
    rows = [
        Row(fake("<base>", BASELINE, "onnxruntime", "f32", agreement=100.0), 1, 8.0, 9.0),
        Row(fake("a & b", "artifact", "onnxruntime", "f32", agreement=97.0), 1, 4.0, 4.0),
        Row(fake("peer", PEER, "openvino", "f32", agreement=96.0), 1, 4.1, 4.2),
        Row(fake("unknown", "artifact", "openvino", "bf16"), 1, 1.0, 1.0),
    ]
    text = picture(rows, "<script>")
    drawn = ET.fromstring(text)
    assert "<script" not in text and "http" not in text.replace("http://www.w3.org/2000/svg", "")
    circles = [item for item in drawn.iter() if item.tag.endswith("circle")]
    assert len(circles) == 2 and float(circles[0].get("cx")) < float(circles[1].get("cx"))  # the faster one is left
    assert float(circles[0].get("cy")) > float(circles[1].get("cy"))  # and lower, being less accurate
    assert "without accuracy: unknown in openvino bf16" in text
    far = Row(fake("broken", PEER, "openvino", "f32", agreement=2.6), 1, 4.0, 4.0)
    again = picture([*rows[:3], far], "t")
    assert "broken, openvino (2.60)" in again  # it does not press the others together
    heights = [item.get("cy") for item in ET.fromstring(again).iter() if item.tag.endswith("circle")]
    assert heights == [item.get("cy") for item in circles]
    with pytest.raises(InputError, match="no accuracy is known"):
        metric_of(rows[3:])


def test_files_are_scored_with_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for index in range(12):
        folder = tmp_path / "val" / f"class{index % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    save_file(base_model(**VIT).state_dict(), tmp_path / "m.safetensors")
    kwargs = ", ".join(f"{key}: {value}" for key, value in VIT.items() if key != "num_classes")
    (tmp_path / "r.yaml").write_text(
        f"model: {{name: vit_tiny_patch16_224, checkpoint: m.safetensors, num_classes: 10, kwargs: {{{kwargs}}}}}\n"
        "data: {workers: 0, batch_size: 6}\nQuantPost: {}\n"
    )
    path = standard_artifact()[0] / "model.onnx"
    words = [path, f"data.val={tmp_path / 'val'}", "--recipe", tmp_path / "r.yaml", "--baseline", fp32()]
    code, printed, _ = bench(capsys, *words, "--batch", "1", "--repeats", "1", "--json", "-", "--half")
    assert code == 0
    rows = json.loads(printed)["results"]
    assert all(0 <= row["top1"] <= 100 and row["agreement"] >= 50 for row in rows)
    assert rows[0]["role"] == "baseline" and rows[0]["agreement"] == 100
    if OPENVINO:
        precisions = {row["precision"] for row in rows if row["role"] == "artifact" and row["backend"] == "openvino"}
        assert precisions == {"f32", half_precision("openvino")[0] or "f32"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.onnx"], "none.onnx: no such file or run folder"),
        (["{folder}"], "no finished run"),
        (["{file}", "--baseline", "none.onnx"], "--baseline: none.onnx: no such file"),
        (["{text}"], "of unknown kind; allowed: .onnx, .xml"),
        (["{file}", "data.val=x"], "needs --recipe"),
        (["{file}", "--batch", "1", "data.val=x"], "data.val=x: no such file; key=value changes a recipe"),
        (["{file}", "--batch", "1,x"], "--batch: 1,x; allowed"),
        (["{file}", "--repeats", "0", "--threads", "-1"], "--threads: -1; allowed"),
        (["{file}", "--backend", "openvin"], "did you mean openvino"),
        (["{file}", "--picture", "x.svg", "--backend", "onnxruntime"], "no accuracy is known"),
        (["{broken}", "--backend", "onnxruntime"], "not a readable ONNX file"),
        (["{file}", "--json", "{folder}"], "a folder; name a file"),
    ],
)
def test_bad_input(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "broken.onnx").write_bytes(b"\xff not a model")
    places = {
        "folder": "folder",
        "text": "a.txt",
        "broken": "broken.onnx",
        "file": standard_artifact()[0] / "model.onnx",
    }
    code, _, errors = bench(capsys, *(word.format(**places) for word in words))
    assert code == 2 and message in errors and "Traceback" not in errors
    assert not (tmp_path / "x.svg").exists()


def test_what_no_runtime_reads_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only openvino reads OpenVINO IR"):
        open_variants([Source("ir", tmp_path / "m.xml")], ["onnxruntime"], 1)
    opened = open_variants([Source("ir", tmp_path / "m.xml", named=False)], ["onnxruntime"], 1)
    assert not opened.variants and "only openvino reads" in opened.skipped[0][1]
