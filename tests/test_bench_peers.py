"""Other tools' quantisers beside ours, on the same original and the same images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from export_support import SIZE, VIT, base_model
from PIL import Image
from safetensors.torch import save_file

from act.backends import backends
from act.bench.data import BenchData
from act.bench.peers import PEERS, Peer, choose_peers, make_peers
from act.bench.sources import Source
from act.cli.main import main
from act.errors import InputError
from act.export import export_onnx

NNCF = PEERS["nncf"].missing() is None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with fp32.onnx, a recipe r.yaml of the same model, and images in train and val."""
    folder = tmp_path_factory.mktemp("peers")
    rng = np.random.default_rng(0)
    for role in ("train", "val"):
        for index in range(10):
            into = folder / role / f"class{index}"
            into.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(into / f"{index}.png")
    model = base_model(**VIT)
    export_onnx(model, folder / "fp32.onnx", SIZE)
    save_file(model.state_dict(), folder / "m.safetensors")
    kwargs = ", ".join(f"{key}: {value}" for key, value in VIT.items() if key != "num_classes")
    (folder / "r.yaml").write_text(
        f"model: {{name: vit_tiny_patch16_224, checkpoint: m.safetensors, num_classes: 10, kwargs: {{{kwargs}}}}}\n"
        "data: {train: train, val: val, workers: 0, batch_size: 4}\nQuantPost: {images: 7}\n"
    )
    return folder


def bench(*words: object) -> int:
    return main(["bench", *map(str, words), "--batch", "1", "--repeats", "1", "--threads", "1"])


def test_peers_stand_in_the_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [place / "fp32.onnx", "--baseline", place / "fp32.onnx", "--recipe", place / "r.yaml", "--json", "-"]
    assert bench(*words, "--peers", "--keep", place / "kept") == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    rows = {(row["name"], row["backend"]): row for row in found["results"] if row["role"] == "peer"}
    ours = next(row for row in found["results"] if row["role"] == "baseline")
    expected = {("peer onnxruntime", name) for name, backend in backends().items() if backend.available() is None}
    expected |= {("peer nncf", "openvino")} if NNCF else set()
    assert expected <= set(rows)
    for row in rows.values():
        assert row["agreement"] >= 50 and 0 <= row["top1"] <= 100 and row["median_ms"] > 0
        assert row["bytes"] < ours["bytes"]
    assert "7 images" in printed.err
    left = {item["what"]: item["reason"] for item in found["left_out"]}
    for name, peer in PEERS.items():
        if peer.missing() is not None:
            assert "pip install" in left[f"peer {name}"]
        else:
            assert found["peers"][name] == peer.settings
    quantized = onnx.load(place / "kept" / "onnxruntime_ptq.onnx")
    operators = {node.op_type for node in quantized.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators


def test_calibration_images_are_those_of_the_recipe(place: Path) -> None:
    found = BenchData(str(place / "r.yaml"), [], SIZE, calibration=True).calibration()
    assert len(found) == 7 and all(image.shape == (1, *SIZE) and image.dtype == np.float32 for image in found)
    again = BenchData(str(place / "r.yaml"), ["data.batch_size=5"], SIZE, calibration=True).calibration()
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


def test_a_peer_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Path:
        raise ValueError("no\nluck")

    monkeypatch.setitem(PEERS, "bad", Peer("bad", "", lambda: None, fail))
    skipped: list[tuple[str, str]] = []
    original = Source("original", tmp_path / "fp32.onnx", "baseline")
    assert make_peers(["bad"], [original], [], tmp_path, skipped) == []
    assert skipped == [("peer bad", "failed: ValueError: no luck")]
    with pytest.raises(InputError, match="no FP32 ONNX file to quantise; give --baseline"):
        make_peers(["bad"], [], [], tmp_path, skipped)


def test_bad_input(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = place / "fp32.onnx"
    assert choose_peers("nncf,onnxruntime,nncf") == ["nncf", "onnxruntime"]
    assert bench(file, "--peers", "ncf") == 2
    assert bench(file, "--peers") == 2
    assert bench(file, "data.train=null", "--peers", "onnxruntime", "--recipe", place / "r.yaml") == 2
    assert bench(file, "data.input_size=[3,64,64]", "--recipe", place / "r.yaml") == 2
    errors = capsys.readouterr().err
    assert "--peers: ncf; known: onnxruntime, nncf, modelopt, or all" in errors
    assert "give --recipe, or name a finished run folder" in errors
    assert "the peers need images to calibrate with" in errors
    assert "its images are 3x64x64, the files take 3x32x32" in errors
