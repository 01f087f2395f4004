"""`vitcompress doctor`, and how the command line shortens names and numbers."""

from __future__ import annotations

import json

import pytest

from act.cli.diagnosis import Finding, cpu, import_failure
from act.cli.main import main
from act.cli.output import number, size
from act.folding import shorten


def output(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> tuple[str, str]:
    assert main(argv) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    found = {entry["name"]: entry for entry in json.loads(output(capsys, "doctor", "--json")[0])}
    assert found["torch"]["state"] == "ok" and found["backend onnxruntime"]["state"] == "ok"
    assert "processor" in found and "GPU" in found and "large pages" in found
    assert "backend onnxruntime" in output(capsys, "doctor")[0]


def test_doctor_reports_what_is_broken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import act.cli.diagnosis as diagnosis

    monkeypatch.setattr(diagnosis, "NEEDED", ("a-package-that-is-not-there",))
    out, _ = output(capsys, "doctor", code=1)
    assert "BROKEN" in out and "pip install a-package-that-is-not-there" in out


def test_doctor_explains_torchvision_of_another_build() -> None:
    versions = {"torch": "2.11.0+cpu", "torchvision": "0.26.0"}
    error = RuntimeError("operator torchvision::nms does not exist")
    text = import_failure("timm", "1.0.25", error, lambda name: versions[name])
    assert (
        "torch 2.11.0+cpu and torchvision 0.26.0" in text and "--index-url https://download.pytorch.org/whl/cpu" in text
    )
    plain = import_failure("onnx", "1.0", ImportError("no module x"), lambda name: "1")
    assert "no module x" in plain and "--force-reinstall onnx" in plain


def test_processor_flags() -> None:
    with_vnni = "model name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx512_vnni\nmodel name\t: Other\n"
    assert cpu(with_vnni).detail.startswith("Some CPU") and "avx2 avx512f avx512_vnni" in cpu(with_vnni).detail
    assert "gain little speed" in cpu("flags: fpu avx2\n").detail
    assert isinstance(cpu(""), Finding) and "unknown" in cpu("").detail


def test_folded_names() -> None:
    names = ["patch_embed.proj", *(f"blocks.{index}.fc" for index in range(12)), "head"]
    assert shorten(f"layers.encoder_layer_{block}.mlp" for block in range(2)) == "layers.encoder_layer_{0-1}.mlp"
    assert shorten(names) == "patch_embed.proj, blocks.{0-11}.fc, head"
    assert (
        shorten(["layers.0.blocks.0.x", "layers.0.blocks.1.x", "layers.1.blocks.0.x"])
        == "layers.0.blocks.{0-1}.x, layers.1.blocks.0.x"
    )
    assert shorten(["blocks.0.x", "blocks.5.x"]) == "blocks.{0,5}.x"


def test_units() -> None:
    assert (size(999), size(1_500_000), number(22_050_664), number(12)) == ("999 B", "1.50 MB", "22.05 M", "12")
