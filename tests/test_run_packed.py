"""`export.formats: [onnx, packed]` from recipe to report, and the verbs that read the packed file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from act import AutoCompression
from act.cli.main import main
from act.rebuild import load_model_folder
from act.run.page import render
from act.storage.file import PACKED_FILE, read_packed
from act.verify.folder import verify_folder


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped example with a packed file, trained for one step a stage."""
    folder = tmp_path_factory.mktemp("packed") / "run"
    words = ["TrainConfig.epochs=1", "TrainConfig.warmup_iter=0", "data.limit_train=64", "data.limit_val=64"]
    words += ["data.calibration_images=32", "export.benchmark=false", "target.max_drop=null"]
    assert main(["run", "quickstart", "--dir", str(folder), "export.formats=[onnx,packed]", *words]) == 0
    return folder


def json_of(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    capsys.readouterr()
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_report_has_sizes_and_the_file_is_the_torch_model(quickstart: Path) -> None:
    report = json.loads((quickstart / "report.json").read_text())
    main_file, packed = report["artifacts"]
    path = quickstart / "artifact" / PACKED_FILE
    assert packed["format"] == "packed" and packed["path"] == f"artifact/{PACKED_FILE}" and "latency" not in packed
    assert packed["bytes"] == path.stat().st_size == sum(part["bytes"] for part in packed["breakdown"])
    assert packed["agreement_torch"] == 100 and packed["max_abs_diff"] == 0
    assert packed["sparse_weights_ratio"] == 6.4 and packed["ratio"] == pytest.approx(
        packed["fp32_bytes"] / packed["bytes"], abs=1e-4
    )
    assert packed["fp32_bytes"] == 4 * report["baseline"]["params"] and packed["bytes"] < main_file["bytes"]
    assert packed["left"] == [] and packed["top1"] == report["stages"][-1]["top1"]
    assert {part["part"] for part in packed["breakdown"]} >= {"int8 2:4", "int8 dense: head", "norms", "header"}
    assert {check["name"]: check["holds"] for check in report["checks"]}["packed file"]
    assert report["baseline"]["bops"] == 1024 * report["baseline"]["macs"] and main_file["macs"] > 0
    assert main_file["bops"] < report["baseline"]["bops"] / 5  # attention's own products stay in floating point
    assert "packed" in render(report, "", []) and "bit operations" in render(report, "", [])


def test_eval_scores_the_packed_file(quickstart: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((quickstart / "report.json").read_text())
    words = ["--recipe", "quickstart", "data.limit_val=64"]
    path = str(quickstart / "artifact" / PACKED_FILE)
    found = json_of(capsys, "eval", path, *words, "--threads", "1")
    assert found["backend"] == "torch" and found["images"] == 64
    assert found["top1"] == pytest.approx(report["artifacts"][1]["top1"], abs=1e-3)
    assert main(["eval", path, *words, "--backend", "onnxruntime"]) == 2
    assert "scored by torch" in capsys.readouterr().err


def test_analyze_counts_bytes(quickstart: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((quickstart / "report.json").read_text())
    found = json_of(capsys, "analyze", str(quickstart))
    header = next(part["bytes"] for part in report["artifacts"][1]["breakdown"] if part["part"] == "header")
    assert found["compressed"]["bytes"] == report["artifacts"][1]["bytes"] - header
    assert found["original"]["bytes"] == 4 * found["original"]["params"]
    assert found["compressed"]["bops"] == report["artifacts"][0]["bops"]
    assert main(["analyze", str(quickstart)]) == 0
    assert "bytes 0." in capsys.readouterr().out


def test_verify_finds_a_flipped_bit_and_the_packed_file_alone_is_enough(quickstart: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(quickstart, tmp_path / "run"))
    path = copied / "artifact" / PACKED_FILE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert {item.name for item in verify_folder(copied) if not item.holds} == {"checksums", "packed file", "report"}
    assert main(["verify", str(copied)]) == 3

    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("arch.json", PACKED_FILE):
        shutil.copy(quickstart / "artifact" / name, alone)
    images = torch.randn(4, *read_packed(alone / PACKED_FILE).input_size(), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(load_model_folder(alone)(images), load_model_folder(quickstart / "artifact")(images))
    words = ["--to", "onnx", "export.min_agreement=0", "export.max_abs_diff=1e-12"]
    assert main(["export", str(alone), *words]) == 1  # the limit is not passed over


def test_export_adds_it_to_a_finished_run(quickstart: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(quickstart, tmp_path / "run"))
    assert main(["export", str(copied), "--to", "packed", "export.formats=[onnx]"]) == 0
    before, after = (read_packed(folder / "artifact" / PACKED_FILE) for folder in (quickstart, copied))
    assert before.layouts == after.layouts
    assert all(torch.equal(tensor, after.tensors[name]) for name, tensor in before.tensors.items())


def test_a_module_of_the_callers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 5}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", **sizes)
    batches = [(torch.randn(8, 3, 16, 16), torch.arange(8) % 5) for _ in range(2)]
    recipe = {"QuantPost": {"images": 16}, "export": {"formats": ["onnx", "packed"], "benchmark": False}}
    result = AutoCompression(
        model, recipe, train_dataloader=batches, eval_dataloader=batches, save_dir=tmp_path / "run"
    ).compress()
    packed = result.report["artifacts"][1]
    assert packed["max_abs_diff"] == 0 and packed["sparse_weights_ratio"] is None and packed["weights_ratio"] == 4
