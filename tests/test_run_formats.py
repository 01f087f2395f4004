"""Every format of an export is written, opened, scored, timed, listed and sealed like the main file."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import act.run.choice as choice
import act.run.deliver as deliver
import act.run.timing as timing
from act import AutoCompression
from act.backends import backends, get_backend
from act.errors import InputError
from act.recipe.schema import Recipe, TargetConfig
from act.run import formats
from act.run.formats import FORMATS, Format, Job, Written, format_problems, in_order
from act.run.goals import check_measurable, judged
from act.run.page import render
from act.verify.folder import verify_folder

needs_openvino = pytest.mark.skipif(backends()["openvino"].available() is not None, reason="openvino is not installed")


def noise() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % 5) for _ in range(3)]


def run(folder: Path, export: dict[str, Any], types: list[str] | None = None) -> Any:
    kwargs = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 5}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **kwargs)
    recipe = {
        "name": "ptq",
        "QuantPost": {"images": 16, "quantize_op_types": types or ["linear", "conv2d"]},
        "export": export,
    }
    with pytest.MonkeyPatch.context() as patch:
        quick = partial(timing.time_in_turns, rounds=(2, 2))
        for module in (deliver, choice):
            patch.setattr(module, "time_in_turns", quick)
        return AutoCompression(
            model, recipe, train_dataloader=noise(), eval_dataloader=noise(), save_dir=folder
        ).compress()


@needs_openvino
def test_openvino_ir_is_treated_like_the_main_file(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = run(folder, {"formats": ["openvino", "onnx"], "benchmark_batches": [2]})
    main, other = result.report["artifacts"]
    assert (main["format"], other["format"]) == ("onnx", "openvino")
    assert other["path"] == "artifact/model.openvino.xml"
    assert [item["path"] for item in other["files"]] == ["artifact/model.openvino.xml", "artifact/model.openvino.bin"]
    assert other["bytes"] == sum((folder / item["path"]).stat().st_size for item in other["files"])
    assert set(result.report["baseline"]["latency"]) == {"onnxruntime", "openvino"}
    assert set(other["latency"]) == set(other["speedup"]) == {"openvino"} and set(main["latency"]) == {"onnxruntime"}
    assert other["agreement_torch"] >= 90 and other["agreement"] >= 50 and 0 <= other["top1"] <= 100
    assert "integer_products" in main and "integer_products" not in other

    images = noise()[0][0].numpy()
    ir, onnx = (get_backend("openvino").load(folder / item["path"]).run(images) for item in (other, main))
    assert np.allclose(ir, onnx, atol=1e-4)  # the same arithmetic, whichever file it was read from
    text = (folder / other["path"]).read_text()
    assert str(tmp_path) not in text
    listed = json.loads((folder / "artifact" / "manifest.json").read_text())["files"]
    assert {"model.openvino.xml", "model.openvino.bin"} <= set(listed)
    page = render(result.report, "", [])
    assert "Exported files" in page and "model.openvino.bin" in page
    assert all(check.holds for check in verify_folder(folder))

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    with (broken / "artifact" / "model.openvino.bin").open("r+b") as file:
        file.write(b"\xff")
    assert {check.name for check in verify_folder(broken) if not check.holds} == {
        "checksums",
        "OpenVINO file",
        "report",
    }


@needs_openvino
def test_attention_runs_as_measured_and_as_asked(tmp_path: Path) -> None:
    formats = {"formats": ["onnx", "onnxruntime", "openvino"], "benchmark_batches": [1]}
    types = ["linear", "conv2d", "matmul"]
    for asked in ("auto", "float"):
        folder = tmp_path / asked
        report = run(folder, formats | {"attention": asked}, types).report
        for entry in report["artifacts"][1:]:
            if asked == "auto":
                times = entry["form_ms"]
                padded = {"int8, padded", "float, padded"} if entry["format"] == "openvino" else set()
                best = min(times, key=times.__getitem__)
                assert set(times) == {"int8", "float"} | padded
                assert entry["attention"] == best.removesuffix(", padded")
                assert entry["rewritten"].get("zero tokens appended", 0) == (3 if "padded" in best else 0)
            else:
                assert entry["attention"] == "float" and "int8" not in entry.get("form_ms", {})
        page = render(report, "", [])
        assert f"openvino: attention in {report['artifacts'][2]['attention']}" in page
        assert ("(measured: int8 " in page) == (asked == "auto")
        checks = {check.name: check for check in verify_folder(folder)}
        assert checks["ONNX Runtime file"].holds and checks["OpenVINO file"].holds
        assert not list((folder / "artifact").glob(".*"))


@needs_openvino
@pytest.mark.parametrize("asked", [True, False])
def test_tokens_are_appended_as_asked(asked: bool, tmp_path: Path) -> None:
    report = run(tmp_path / "run", {"formats": ["onnx", "openvino"], "pad_tokens": asked}).report
    main, other = report["artifacts"]
    assert other["rewritten"]["zero tokens appended"] == (3 if asked else 0) and "form_ms" not in other
    images = noise()[0][0].numpy()
    ir, onnx = (get_backend("openvino").load(tmp_path / "run" / item["path"]).run(images) for item in (other, main))
    assert np.allclose(ir, onnx, atol=1e-4)
    assert ("3 zero tokens appended" in render(report, "", [])) == asked
    found = {check.name: check for check in verify_folder(tmp_path / "run")}
    assert found["OpenVINO file"].holds
    assert ("3 zero tokens appended" in found["OpenVINO file"].detail) == asked

    path = tmp_path / "run" / other["path"]
    text = path.read_text()
    words = ("true", "false") if asked else ("false", "true")
    old, new = (f'<pad_tokens value="{word}" />' for word in words)
    assert old in text
    path.write_text(text.replace(old, new))
    found = {check.name: check for check in verify_folder(tmp_path / "run")}
    assert not found["OpenVINO file"].holds and "operators; model.onnx converts to" in found["OpenVINO file"].detail
    path.write_text(text.replace(old, '<pad_tokens value="8" />'))
    found = {check.name: check for check in verify_folder(tmp_path / "run")}
    assert "says 8 of its form under vitcompress.pad_tokens; allowed: true, false" in found["OpenVINO file"].detail


def test_a_registered_format_needs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(job: Job) -> Written:
        assert job.onnx.is_file() and job.metadata["recipe"] == "ptq"
        path = job.onnx.with_name("copy.onnx")
        shutil.copy(job.onnx, path)
        return Written(path, notes={"hint": "as it is"})

    monkeypatch.setitem(FORMATS, "copy", Format(write, "onnxruntime", timed=False))
    report = run(tmp_path / "run", {"formats": ["onnx", "copy"], "benchmark_batches": [1]}).report
    main, copy = report["artifacts"]
    assert copy["hint"] == "as it is" and "latency" not in copy
    assert all(copy[name] == main[name] for name in ("sha256", "agreement", "max_abs_diff"))


def test_formats_that_cannot_be_written_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        formats, "FORMATS", {**FORMATS, "other": Format(FORMATS["onnx"].write, "x", True, lambda: "no x")}
    )
    assert format_problems(["onnx"]) == []
    assert format_problems([])[0].startswith("export.formats: empty; allowed: onnx, onnxruntime")
    assert format_problems(["onnx", "tflite"])[0].startswith("export.formats: tflite; allowed: ")
    assert format_problems(["onnx", "other"]) == ["export.formats: other cannot be written here: no x"]
    assert format_problems(["other"])[0] == "export.formats: other; add onnx, from which the others are made"
    assert in_order(["other", "onnx", "other"]) == ["onnx", "other"]


def test_a_time_is_judged_in_the_runtime_it_is_asked_for() -> None:
    recipe = Recipe()
    recipe.target = TargetConfig(latency_ms=1.0, backend="openvino")
    with pytest.raises(InputError, match=r"target\.backend: .* times its files with onnxruntime on cpu, not with open"):
        check_measurable(recipe, has_val=True, has_callback=False)
    entries = [{"latency": {"onnxruntime": {}}}, {"latency": {"openvino": {}}}]
    assert judged(recipe.target, entries) is entries[1]
    assert judged(TargetConfig(max_drop=1.0, backend="openvino"), entries) is entries[0]
