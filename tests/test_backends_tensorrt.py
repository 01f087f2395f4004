"""The engine builder against a stand-in for `tensorrt` 10 and 11, and the inspector's JSON of both."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from export_support import images
from tensorrt_standin import (
    SPARSE_TACTIC,
    Builder,
    EngineStandIn,
    OnnxParser,
    Recorder,
    layers_json,
    stand_in,
)
from tensorrt_support import Block, clean

from act.backends.onnxruntime import OnnxSession, open_session
from act.backends.tensorrt import CAUTION, EngineOptions, TensorRt, TensorRtSession, build_engine, import_tensorrt
from act.backends.tensorrt_fallback import EngineMeasure, Measured, choose
from act.backends.tensorrt_inspector import io_tensors, parse_layers, summary
from act.cli.main import main
from act.errors import ExportError, InputError
from act.export.tensorrt_variants import as_convolution, as_gemm, float_weights
from act.verify.onnx_file import OnnxFile
from act.verify.tensorrt import lint


@pytest.fixture(params=[10, 11])
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in(request.param))
    Recorder.calls.clear()
    return int(request.param)


def block(folder: Path) -> Path:
    onnx.save_model(clean(), str(folder / "block.onnx"))
    return folder / "block.onnx"


def test_call_sequence(version: int, tmp_path: Path) -> None:
    (tmp_path / "old.cache").write_bytes(b"old")
    options = EngineOptions((1, 4, 16), workspace=1 << 30, level=4, timing_cache=tmp_path / "old.cache")
    engine = build_engine(block(tmp_path), options)
    assert Recorder.calls[:2] == [("create_network", 2 if version == 10 else 0), ("parse_from_file", "block.onnx")]
    shapes = [(batch, 3, 32, 32) for batch in (1, 4, 16)]
    assert Recorder.calls[2:7] == [
        ("profiling_verbosity", "DETAILED"), ("set_flag", "SPARSE_WEIGHTS"),
        ("set_memory_pool_limit", "WORKSPACE", 1 << 30), ("builder_optimization_level", 4),
        ("set_shape", "images", *shapes),
    ]  # fmt: skip
    names = [call[0] for call in Recorder.calls[7:]]
    assert names == [
        "add_optimization_profile", "create_timing_cache", "set_timing_cache", "build_serialized_network",
        "get_timing_cache", "deserialize_cuda_engine",
    ]  # fmt: skip
    assert ("create_timing_cache", b"old") in Recorder.calls
    assert (tmp_path / "old.cache").read_bytes() == b"timings"
    assert engine.plan == b"plan" and engine.version == f"{version}.1.0"
    assert engine.sparsity_log == ("(Sparsity) Layers eligible for sparse math: fc1, fc2",)
    assert [layer.name for layer in engine.layers()][:2] == ["fc1", "fc2"]


def test_dense_build_and_defaults(version: int, tmp_path: Path) -> None:
    build_engine(block(tmp_path), EngineOptions(sparse=False))
    names = [call[0] for call in Recorder.calls]
    assert not {"set_flag", "set_memory_pool_limit", "builder_optimization_level", "set_timing_cache"} & set(names)


def test_removed_flags_are_not_needed(version: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = sys.modules["tensorrt"]
    monkeypatch.setattr(module, "BuilderFlag", object)
    monkeypatch.delattr(module, "NetworkDefinitionCreationFlag")
    build_engine(block(tmp_path))
    assert ("create_network", 0) in Recorder.calls and all(call[0] != "set_flag" for call in Recorder.calls)


def test_refusals_are_told(version: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        build_engine(tmp_path / "none.onnx")
    monkeypatch.setattr(OnnxParser, "refuses", True)
    with pytest.raises(ExportError, match=r"block\.onnx: TensorRT cannot read it: error 0"):
        build_engine(block(tmp_path))
    monkeypatch.setattr(OnnxParser, "refuses", False)
    monkeypatch.setattr(Builder, "refuses", True)
    with pytest.raises(ExportError, match=r"cannot build an engine: .*no implementation for fc1"):
        build_engine(block(tmp_path))


def test_versions_and_availability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in(8))
    with pytest.raises(InputError, match=r"TensorRT 8\.1\.0; supported: 10 and 11"):
        import_tensorrt()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'vitcompress[tensorrt]'" in str(TensorRt().available())


def test_doctor_says_that_it_has_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from act.cli.diagnosis import _backends

    shown = {finding.name: finding for finding in _backends()}["backend tensorrt"]
    assert shown.detail.endswith(CAUTION)
    monkeypatch.setattr(TensorRt, "available", lambda self: None)
    shown = {finding.name: finding for finding in _backends()}["backend tensorrt"]
    assert shown.state == "ok" and shown.detail.endswith("not yet run on hardware")


def test_session(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    session = TensorRtSession(sys.modules["tensorrt"], b"plan", "cpu")
    batch = images(3).numpy()
    assert np.array_equal(session.run(batch), batch.reshape(3, -1)[:, :2])
    assert session.layer_times(batch, 3) == {"fc1": 0.25, "fc2": 0.25}
    with pytest.raises(InputError, match=r"cannot take images of \[9, 3, 32, 32\]"):
        session.run(images(9).numpy())
    with pytest.raises(InputError, match="cannot open the engine"):
        TensorRtSession(sys.modules["tensorrt"], b"other", "cpu")
    monkeypatch.setattr(EngineStandIn, "output_type", "HALF")
    with pytest.raises(InputError, match="logits is not float32"):
        TensorRtSession(sys.modules["tensorrt"], b"plan", "cpu")


@pytest.mark.parametrize("kind", [10, 11])
def test_inspector(kind: int) -> None:
    """Only the tactic's name proves a sparse kernel; HasSparseWeights on a dense one does not."""
    text = layers_json(kind)
    fc1, fc2, mha, reformat, opaque = parse_layers(text, ["blocks.0.attn.qkv/MatMul"], {"fc1": 0.5})
    assert (fc1.eligible, fc1.int8, fc1.sparse, fc1.milliseconds) == (True, True, True, 0.5)
    assert fc1.nodes == ("blocks.0.mlp.fc1/MatMul", "fc1/Add")
    assert (fc2.eligible, fc2.int8, fc2.sparse, fc2.milliseconds) == (True, True, False, None)
    assert (mha.eligible, mha.int8, mha.sparse) == (False, False, False)
    assert (reformat.eligible, reformat.int8) == (False, False)
    assert (opaque.eligible, opaque.sparse) == (True, None)
    found = summary([fc1, fc2, mha, reformat, opaque])
    assert found == {"layers": 5, "int8": 2, "eligible": 3, "sparse": 1, "dense": 1, "unknown": 1}
    assert io_tensors(text) == ["images", "logits"]


def test_inspector_without_details() -> None:
    with pytest.raises(InputError, match="detailed profiling"):
        parse_layers('{"Layers": ["fc1", "fc2"], "Bindings": []}')
    for text in ("no JSON", "[]", "{}"):
        with pytest.raises(InputError, match="engine inspector"):
            parse_layers(text)


def outputs(model: onnx.ModelProto, folder: Path) -> Any:
    onnx.save_model(model, str(folder / "m.onnx"))
    batch = np.random.default_rng(1).standard_normal((3, 16, 32)).astype(np.float32)
    return OnnxSession(open_session(folder / "m.onnx", optimize=False)).run(batch)


@pytest.mark.parametrize("rewrite", [float_weights, as_gemm, as_convolution])
def test_variants_compute_the_same_and_keep_the_rules(rewrite: Any, tmp_path: Path) -> None:
    model = clean(np.float32)
    before = outputs(model, tmp_path)
    assert rewrite(model) == ["q", "k", "v", "proj"]
    onnx.checker.check_model(model, full_check=True)
    assert np.allclose(outputs(model, tmp_path), before, rtol=1e-4, atol=1e-4 * np.abs(before).max())
    half = clean()
    rewrite(half)
    onnx.save_model(half, str(tmp_path / "half.onnx"))
    suffix = {float_weights: ".float", as_gemm: ".turned", as_convolution: ".turned"}[rewrite]
    claims = {f"{name}.weight_int8{suffix}": "2:4" for name in ("q", "k", "v", "proj")}
    assert lint(OnnxFile(tmp_path / "half.onnx"), claims) == []


def test_float_weights_that_would_change_are_left() -> None:
    b = Block()
    model = b.model(b.linear(b.pair("x", "in"), "fc"))
    for tensor in model.graph.initializer:
        if tensor.name == "fc.weight_quantizer.scale":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(32, 6e-8, np.float16), tensor.name))
    scale_is_one_step = np.float16(6e-8) == np.finfo(np.float16).smallest_subnormal
    assert scale_is_one_step and float_weights(model) == ["fc"]
    for tensor in model.graph.initializer:
        if tensor.name == "fc.weight_quantizer.scale":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(32, 600, np.float16), tensor.name))
    assert float_weights(model) == []


def measured(times: dict[str, tuple[float, int]], seen: list[str]) -> Any:
    def measure(path: Path, sparse: bool) -> Measured:
        name = path.stem.partition(".")[2] or ("exported" if sparse else "dense")
        seen.append(name)
        if name not in times:
            raise RuntimeError("out of memory\nsecond line")
        return Measured(times[name][0], 4, times[name][1])

    return measure


def test_every_form_is_measured_and_the_fastest_kept(tmp_path: Path) -> None:
    seen: list[str] = []
    times = {"exported": (2.0, 0), "float-weights-with-q-dq": (1.5, 4), "1x1-convolution": (1.2, 2), "dense": (1.9, 0)}
    best, tried = choose(block(tmp_path), tmp_path, measured(times, seen))
    assert seen == ["exported", "float-weights-with-q-dq", "gemm", "1x1-convolution", "dense"]
    assert best.variant == "1x1 convolution" and best.path == tmp_path / "block.1x1-convolution.onnx"
    gemm = tried[2]
    assert (gemm.variant, gemm.measured, gemm.failure) == ("Gemm", None, "out of memory")
    onnx.checker.check_model(onnx.load(best.path), full_check=True)


def test_sparse_everywhere_is_compared_with_dense_only(tmp_path: Path) -> None:
    seen: list[str] = []
    best, _ = choose(block(tmp_path), tmp_path, measured({"exported": (2.0, 4), "dense": (1.5, 0)}, seen))
    assert seen == ["exported", "dense"] and best.variant == "dense"
    with pytest.raises(ExportError, match=r"no form of it runs: as exported: out of memory"):
        choose(block(tmp_path), tmp_path, measured({}, seen))


def test_forms_that_change_nothing_are_told(tmp_path: Path) -> None:
    b = Block()
    onnx.save_model(b.model(b.pair("x", "in")), str(tmp_path / "block.onnx"))
    _, tried = choose(tmp_path / "block.onnx", tmp_path, measured({"exported": (1.0, 0), "dense": (1.0, 0)}, []))
    assert [item.failure for item in tried[1:4]] == ["no product of the file can take this form"] * 3


def test_engine_verb(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineMeasure, "device", "cpu")
    monkeypatch.setattr(OnnxFile, "input_size", lambda self: (3, 32, 32))
    path = block(tmp_path)
    assert main(["engine", str(path), "--batches", "1,2"]) == 2
    assert main(["engine", str(path), "--batches", "4,2,8"]) == 2
    assert main(["engine", str(path), "--batches", "1,2,8"]) == 0
    found = json.loads((tmp_path / "block.engine.json").read_text())
    assert found["tensorrt"] == f"{version}.1.0" and len(found["forms"]) == 5
    assert found["summary"]["sparse"] == 1 and found["layers"][0]["tactic"] == SPARSE_TACTIC
    assert found["layers"][0]["milliseconds"] == 0.25
    assert (tmp_path / "block.engine").read_bytes() == b"plan" and (tmp_path / "block.cache").is_file()
