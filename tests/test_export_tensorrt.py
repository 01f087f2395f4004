"""The TensorRT form: the same integers in an FP16 body, Q/DQ where TensorRT wants them, the same predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
from export_support import (
    DIGITS,
    SIZE,
    VIT,
    base_model,
    calibrate,
    images,
    linear_names,
    quantize_edit,
    standard_artifact,
)
from onnx import helper, numpy_helper
from safetensors.torch import save_file
from tensorrt_support import Block, bypass, clean, constant, node, value_of
from test_verify_tensorrt import late_scale, second_pair

from act.backends.onnxruntime import OnnxRuntime, OnnxSession, open_session
from act.cli.main import main
from act.edits import apply_edits
from act.errors import ExportError
from act.export import export_onnx
from act.export.half import half_scale, to_half
from act.export.patterns import drop_dead
from act.export.placement import float_attentions, merge_pairs, scale_queries
from act.export.tensorrt import export_tensorrt, to_tensorrt, trtexec
from act.verify.match import Expected
from act.verify.onnx_file import OnnxFile
from act.verify.parity import relative_difference
from act.verify.rules import Broken
from act.verify.tensorrt import SPARSE, lint_file
from act.verify.tensorrt_file import tensorrt_file


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The standard artifact with its TensorRT file."""
    folder = tmp_path_factory.mktemp("tensorrt") / "artifact"
    shutil.copytree(standard_artifact()[0], folder)
    masks = Expected.from_edits(json.loads((folder / "arch.json").read_text())["edits"]).masks
    found = export_tensorrt(folder / "model.onnx", folder / "model.tensorrt.onnx", masks)
    assert (found.integer_products, found.float_products) == (8, 6) and found.findings == []
    assert len(found.remarks) == 2
    return folder


def test_types_and_interface(converted: Path) -> None:
    file = OnnxFile(converted / "model.tensorrt.onnx")
    main_file = OnnxFile(converted / "model.onnx")
    kinds = {array.dtype for array in file.constants.values()}
    assert kinds == {np.dtype(kind) for kind in (np.float16, np.int8, np.int64)}
    for name, array in file.constants.items():
        if array.dtype == np.int8:
            assert np.array_equal(array, main_file.constants[name]), name
    for name in ("blocks.1.mlp.fc2.weight_quantizer.scale", "blocks.0.attn.qkv.input_quantizer.scale"):
        assert np.array_equal(file.constant(name), main_file.constant(name).astype(np.float16))
    values = (*file.graph.input, *file.graph.output)
    assert [value.name for value in values] == ["images", "logits"]
    assert {value.type.tensor_type.elem_type for value in values} == {onnx.TensorProto.FLOAT}
    assert [entry.version for entry in file.model.opset_import if entry.domain == ""] == [20]


def test_placement(converted: Path) -> None:
    file = OnnxFile(converted / "model.tensorrt.onnx")
    readers = {item.output[0]: file.consumers.get(item.output[0], []) for item in file.graph.node}
    for item in file.graph.node:
        if item.op_type == "Gelu":
            assert [reader.op_type for reader in readers[item.output[0]]] == ["QuantizeLinear"]
    quantized = [item.input[0] for item in file.graph.node if item.op_type == "QuantizeLinear"]
    assert len(quantized) == len(set(quantized)) == 8
    for layer in ("patch_embed.proj", "head"):
        assert file.constant(f"{layer}.weight_float").dtype == np.float16
        assert f"{layer}.weight_int8" not in file.constants


def test_same_predictions_and_the_linter_checks_the_claims(converted: Path) -> None:
    batch = images(32).numpy()
    before, after = (OnnxRuntime().load(converted / n).run(batch) for n in ("model.onnx", "model.tensorrt.onnx"))
    assert after.dtype == np.float32 and relative_difference(after, before) < 0.1
    assert (before.argmax(1) == after.argmax(1)).mean() > 0.9
    claims = json.loads(
        {p.key: p.value for p in OnnxFile(converted / "model.tensorrt.onnx").model.metadata_props}[SPARSE]
    )
    assert set(claims) == {
        f"blocks.{n}.{part}" for n in (0, 1) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert lint_file(converted / "model.tensorrt.onnx") == []


@pytest.mark.parametrize("name", ["blocks.0.mlp.fc1.weight_int8", "head.weight_float", "blocks.1.norm1.weight"])
def test_verify_finds_a_changed_constant(converted: Path, name: str, tmp_path: Path) -> None:
    main_file = OnnxFile(converted / "model.onnx")
    assert "constants" in tensorrt_file(main_file, converted / "model.tensorrt.onnx")
    model = onnx.load(converted / "model.tensorrt.onnx")
    value = value_of(model, name).copy()
    at = np.unravel_index(np.abs(value.astype(np.float32)).argmax(), value.shape)
    value[at] = value[at] - 1 if value.dtype == np.int8 else value[at] * np.float16(1.01)
    constant(model, name, value)
    onnx.save_model(model, str(tmp_path / "changed.onnx"))
    with pytest.raises(Broken, match=rf"^{name}: not the value of model\.onnx$"):
        tensorrt_file(main_file, tmp_path / "changed.onnx")


def outputs(model: onnx.ModelProto, folder: Path) -> Any:
    onnx.save_model(model, str(folder / "m.onnx"))
    batch = np.random.default_rng(1).standard_normal((3, 16, 32)).astype(np.float32)
    return OnnxSession(open_session(folder / "m.onnx", optimize=False)).run(batch)


def quantizers(model: onnx.ModelProto) -> int:
    return sum(item.op_type == "QuantizeLinear" for item in model.graph.node)


def test_pairs_are_merged(tmp_path: Path) -> None:
    model = clean(np.float32)
    before, count = outputs(model, tmp_path), quantizers(model)
    second_pair(model)
    assert quantizers(model) == count + 1
    merge_pairs(model)
    drop_dead(model.graph)
    assert quantizers(model) == count
    assert np.array_equal(outputs(model, tmp_path), before)


def test_pairs_with_different_scales_stay(tmp_path: Path) -> None:
    model = clean(np.float32)
    count = quantizers(model)
    second_pair(model)
    for name in ("norm.q.2", "norm.dq.2"):
        node(model, name).input[1] = constant(model, "other", np.float32(0.06))
    merge_pairs(model)
    assert node(model, "v").input[0] == "norm.dq.out.2" and quantizers(model) == count + 1


@pytest.mark.parametrize(("pair", "text"), [("V", "not quantised at V"), ("O", "not quantised at O")])
def test_incomplete_attention_becomes_float(pair: str, text: str) -> None:
    model = clean(np.float32)
    bypass(model, pair)
    remarks = float_attentions(model)
    assert len(remarks) == 1 and text in remarks[0] and remarks[0].startswith("softmax: attention in FP16")
    drop_dead(model.graph)
    assert quantizers(model) == (2 if pair == "V" else 1)


def test_attention_outside_the_limits_becomes_float() -> None:
    model = clean(np.float32)
    value = value_of(model, "split").copy()
    value[2:] = (4, 8)
    constant(model, "split", value)
    assert "head size is 8" in float_attentions(model)[0]
    assert float_attentions(clean(np.float32)) == []


@pytest.mark.parametrize("quantized", [True, False])
def test_factor_moves_to_the_query(quantized: bool, tmp_path: Path) -> None:
    """Codes of the query are the same, so the result differs by the rounding of one product only."""
    model = clean(np.float32)
    late_scale(model)
    if not quantized:
        for pair in "QKPV":
            bypass(model, pair)
    before = outputs(model, tmp_path)
    scale_queries(model)
    drop_dead(model.graph)
    onnx.checker.check_model(model, full_check=True)
    assert all(item.name != "late" for item in model.graph.node)
    assert node(model, "scores/Mul").input[0] == "qh.t.out"
    assert relative_difference(outputs(model, tmp_path).reshape(3, -1), before.reshape(3, -1)) < 0.02


def test_tiny_scales_keep_their_weights() -> None:
    scale = np.array([1e-2, 2e-5, 3e-7, 1e-9] * 8, np.float32)
    b = Block(np.float32)
    model = b.model(b.linear(b.pair("x", "in"), "fc"))
    codes = value_of(model, "fc.weight_int8")
    constant(model, "fc.weight_quantizer.scale", scale)
    to_half(model)
    stored, changed = value_of(model, "fc.weight_quantizer.scale"), value_of(model, "fc.weight_int8")
    assert stored.dtype == np.float16 and np.array_equal(stored, half_scale(scale, "x")) and (stored > 0).all()
    assert (stored[scale < 6e-5] >= scale[scale < 6e-5]).all()
    assert np.array_equal(changed[:, ::4], codes[:, ::4]) and not changed[codes == 0].any()
    error = np.abs(changed * stored.astype(np.float64) - codes * scale.astype(np.float64))
    assert (error <= (0.5 + 1e-3) * stored * np.where(scale < 6e-5, 1, 127 * 2**-10)).all()


def test_values_that_fp16_cannot_hold() -> None:
    model = clean(np.float32)
    constant(model, "proj.bias", np.full(32, -1e9, np.float32))
    to_half(model)
    assert (value_of(model, "proj.bias") == np.finfo(np.float16).min).all()
    for name, value, text in (("proj.bias", np.full(32, 7e4), "beyond FP16"), ("Q.scale", 1e-9, "too small a scale")):
        model = clean(np.float32)
        constant(model, name, np.asarray(value, np.float32))
        with pytest.raises(ExportError, match=text):
            to_half(model)


def test_constants_inside_nodes_and_casts() -> None:
    value = numpy_helper.from_array(np.ones(1, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["a"], value_float=2.0),
        helper.make_node("Constant", [], ["b"], value=value),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("ConstantOfShape", ["s"], ["c"], value=value),
        helper.make_node("Cast", ["s"], ["d"], to=1),
        helper.make_node("Gather", ["d", "zero"], ["e"]),
        helper.make_node("Sum", ["x", "a", "b", "c", "e"], ["y"]),
    ]
    b = Block(np.float32)
    b.constant("zero", np.int64(0))
    b.nodes = nodes
    model = b.model("y")
    to_half(model)
    onnx.checker.check_model(model, full_check=True)


def test_conversion_does_not_change_its_source() -> None:
    model = clean(np.float32)
    before = model.SerializeToString(deterministic=True)
    to_tensorrt(model, {"q": "2:4"})
    assert model.SerializeToString(deterministic=True) == before


def test_commands() -> None:
    ten, eleven = (trtexec("m.tensorrt.onnx", (3, 224, 224), (1, 8, 32), True, version) for version in (10, 11))
    assert ten.startswith(
        "trtexec --onnx=m.tensorrt.onnx --minShapes=images:1x3x224x224 --optShapes=images:8x3x224x224"
    )
    assert set(ten.split()) - set(eleven.split()) == {"--stronglyTyped"}
    assert "--sparsity=enable" in eleven and "--profilingVerbosity=detailed" in eleven
    assert "sparsity" not in trtexec("m.onnx", (3, 224, 224), (1, 8, 32), False, 11)


def test_run_and_export_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kwargs = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 10}
    save_file(timm.create_model("vit_tiny_patch16_224", **kwargs).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "digits.yaml").write_text(DIGITS)
    folder = tmp_path / "run"
    assert main(["export", str(folder), "--to", "tensorrt"]) == 2
    assert main(["run", str(tmp_path / "digits.yaml"), "--dir", str(folder)]) == 0
    assert main(["export", str(folder), "--to", "tensorrt", "seed=2"]) == 2
    assert main(["export", str(folder), "--to", "tensorrt"]) == 0
    shown = capsys.readouterr()
    assert "kept" in shown.out + shown.err
    report = json.loads((folder / "report.json").read_text())
    first, second = report["artifacts"]
    assert (first["format"], second["format"]) == ("onnx", "tensorrt")
    assert second["path"] == "artifact/model.tensorrt.onnx" and second["integer_products"] == 4
    assert {"top1", "agreement", "agreement_torch", "max_abs_diff"} <= set(second) and "latency" not in second
    assert "not run on TensorRT" in second["executed"]
    commands = (folder / "artifact/model.tensorrt.txt").read_text()
    assert second["commands"]["10"] in commands and second["commands"]["11"] in commands
    assert second["commands"]["11"].split()[0] == "trtexec" and "--sparsity" not in commands
    assert {check["name"]: check["holds"] for check in report["checks"]}["TensorRT file"]
    page = (folder / "report.html").read_text()
    assert "trtexec --onnx=model.tensorrt.onnx" in page and "not run on TensorRT" in page
    assert main(["verify", str(folder)]) == 0
    assert main(["verify", str(folder), "--target", "tensorrt"]) == 0


def test_unsigned_probabilities_become_signed_over_the_same_range(tmp_path: Path) -> None:
    model = base_model("vit_tiny_patch16_224", **(VIT | {"embed_dim": 64, "num_heads": 2}))
    names = [name for name in linear_names(model, convolutions=False) if name.startswith("blocks")]
    attentions = [f"blocks.{index}.attn" for index in range(2)]
    apply_edits(model, [quantize_edit(names), {"op": "quantize_matmul", "layers": attentions, "activation_bits": 8}])
    calibrate(model, images())
    export_onnx(model, tmp_path / "a.onnx", SIZE)
    file = onnx.load(tmp_path / "a.onnx")
    zeros = [tensor for tensor in file.graph.initializer if tensor.name == "zero_point_uint8"]
    assert len(zeros) == 1
    scale = numpy_helper.to_array(
        next(t for t in file.graph.initializer if t.name == "blocks.0.attn.matmul_quantizers.2.scale")
    )
    done = export_tensorrt(tmp_path / "a.onnx", tmp_path / "b.onnx", {})
    written = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "b.onnx").graph.initializer}
    assert not any(array.dtype == np.uint8 for array in written.values())
    found = written["blocks.0.attn.matmul_quantizers.2.scale_int8"]
    assert np.isclose(float(found) * 127, float(scale) * 255, rtol=1e-3)
    assert sum("127 steps instead of 255" in remark for remark in done.remarks) == 2
    assert not [item for item in done.findings if item.level == "error"]
