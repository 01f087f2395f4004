"""The TensorRT linter: a clean file passes, and each rule is broken by a file that breaks only it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from export_support import standard_artifact
from onnx import helper
from tensorrt_support import WIDTH, Block, bypass, clean, constant, findings, node, value_of

from act.cli.main import main
from act.errors import InputError
from act.verify.tensorrt import ERROR, RULES, SPARSE, lint_file, pick_file

Breaker = Callable[[onnx.ModelProto], Any]


def zero_point(model: onnx.ModelProto) -> None:
    for name in ("norm.q", "norm.dq"):
        node(model, name).input[2] = constant(model, "three", np.int8(3))


def unsigned(model: onnx.ModelProto) -> None:
    for name in ("P.q", "P.dq"):
        node(model, name).input[2] = constant(model, "zero_u8", np.uint8(0))


def scale_of_zero(model: onnx.ModelProto) -> None:
    value = value_of(model, "proj.weight_quantizer.scale").copy()
    value[5] = 0
    constant(model, "proj.weight_quantizer.scale", value)


def float_scale(model: onnx.ModelProto) -> None:
    """A float32 scale of the query in the half-precision body, its result cast back."""
    constant(model, "Q.scale", np.float32(0.05))
    at = list(model.graph.node).index(node(model, "Q.dq")) + 1
    model.graph.node.insert(at, helper.make_node("Cast", ["Q.dq.out"], ["Q.half"], name="Q.half", to=10))
    node(model, "scores").input[0] = "Q.half"


def many_scales(model: onnx.ModelProto) -> None:
    for name in ("O.q", "O.dq"):
        item = node(model, name)
        item.input[1] = constant(model, "O.scales", np.full(WIDTH, 0.05, np.float16))
        item.input[2] = constant(model, f"zero_{WIDTH}", np.zeros(WIDTH, np.int8))
        item.attribute.append(helper.make_attribute("axis", 2))


def input_channels(model: onnx.ModelProto) -> None:
    node(model, "proj.w").attribute[0].i = 0


def dense(model: onnx.ModelProto) -> None:
    value = value_of(model, "k.weight_int8").copy()
    value[4:8, 3] = (1, 1, 0, 1)
    constant(model, "k.weight_int8", value)


def quantized_bias(model: onnx.ModelProto) -> None:
    constant(model, "bias_int8", np.ones(WIDTH, np.int8))
    inputs = ["bias_int8", "Q.scale", "zero"]
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, ["bias.out"], name="bias.dq"))
    node(model, "proj.add").input[1] = "bias.out"


def second_pair(model: onnx.ModelProto) -> None:
    first, second = node(model, "norm.q"), node(model, "norm.dq")
    at = list(model.graph.node).index(second) + 1
    copies = [onnx.NodeProto.FromString(item.SerializeToString()) for item in (first, second)]
    for item in copies:
        item.name, item.output[0] = f"{item.name}.2", f"{item.output[0]}.2"
    copies[1].input[0] = copies[0].output[0]
    node(model, "v").input[0] = copies[1].output[0]
    for item in reversed(copies):
        model.graph.node.insert(at, item)


def contrib(model: onnx.ModelProto) -> None:
    node(model, "merge").domain = "com.microsoft"


def dynamic(model: onnx.ModelProto) -> None:
    outputs = ["codes", "codes.scale", "codes.zero"]
    model.graph.node.append(helper.make_node("Cast", ["x"], ["x32"], name="cast", to=1))
    model.graph.node.append(helper.make_node("DynamicQuantizeLinear", ["x32"], outputs, name="dynamic"))


def narrow(model: onnx.ModelProto) -> None:
    for name, axis in (("proj.weight_int8", 1), ("proj.weight_quantizer.scale", 0), ("proj.bias", 0)):
        constant(model, name, value_of(model, name).take(range(24), axis=axis))
    node(model, "proj.w").input[2] = constant(model, "zero_24", np.zeros(24, np.int8))


def longer(model: onnx.ModelProto) -> None:
    """600 tokens."""
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 600
    for name in ("split", "merged"):
        value = value_of(model, name).copy()
        value[1] = 600
        constant(model, name, value)


def late_scale(model: onnx.ModelProto) -> None:
    scaled, scores = node(model, "scaled"), node(model, "scores")
    node(model, "Q.q").input[0] = scaled.input[0]
    moved = helper.make_node("Mul", [scores.output[0], "factor"], ["late.out"], name="late")
    node(model, "softmax").input[0] = "late.out"
    model.graph.node.remove(scaled)
    model.graph.node.insert(list(model.graph.node).index(scores) + 1, moved)


BREAKERS: dict[str, tuple[str, Breaker, str, str]] = {
    "zero point": ("zero-point", zero_point, "norm.q", r"zero points 3 to 3; .* 0 only"),
    "uint8": ("integer-type", unsigned, "P.q", r"uint8; TensorRT allows int8"),
    "scale of zero": ("scale", scale_of_zero, "proj.w", r"scales from 0 to 0\.01"),
    "float32 scale": ("scale-type", float_scale, "Q.q", r"float32 scale for float16 data"),
    "scales of an activation": ("per-channel", many_scales, "O.q", r"32 scales for an activation"),
    "scales along K": ("per-channel", input_channels, "proj", r"scales along axis 0 .* allowed: 1"),
    "not 2:4": ("sparsity", dense, "k", r"1 groups of 4 along K \(axis 0 of \[32, 32\]\)"),
    "bias": ("bias", quantized_bias, "proj.add", r"bias bias_int8 is quantised"),
    "pair per reader": ("shared-pair", second_pair, "norm", r"2 Q/DQ pairs .* merge them \(export"),
    "foreign operator": ("operator", contrib, "merge", r"com\.microsoft\.Reshape"),
    "dynamic": ("operator", dynamic, "dynamic", r"DynamicQuantizeLinear"),
    "alignment": ("alignment", narrow, "proj", r"N = 24; .* multiples of 16"),
    "long sequence": ("attention-shape", longer, "scores", r"a sequence of 600; .* up to 512"),
    "V in float": ("attention-complete", lambda model: bypass(model, "V"), "softmax", r"without Q/DQ at V;"),
    "O in float": ("attention-complete", lambda model: bypass(model, "O"), "softmax", r"without Q/DQ at O;"),
    "late scale": ("attention-scale", late_scale, "late", r"after q k\^T"),
}


def test_clean_file_passes(tmp_path: Path) -> None:
    assert findings(clean(), tmp_path) == []
    onnx.checker.check_model(clean(), full_check=True)


@pytest.mark.parametrize("case", BREAKERS)
def test_one_rule_broken(case: str, tmp_path: Path) -> None:
    name, breaks, where, text = BREAKERS[case]
    model = clean()
    breaks(model)
    found = findings(model, tmp_path)
    assert {item.rule for item in found} == {name}, found
    assert {item.level for item in found} == {RULES[name].level}
    matching = [item for item in found if item.node == where]
    assert matching, found
    assert re.search(text, matching[0].text), matching[0].text


def test_every_rule_is_broken_by_some_file() -> None:
    assert {name for name, *_ in BREAKERS.values()} | {"float32-body", "opset", "sparse-kernels"} == set(RULES)


def test_a_pattern_without_sparse_kernels_is_checked_as_it_is_and_said_to_run_densely(tmp_path: Path) -> None:
    (found,) = findings(clean(), tmp_path, {"q": "2:4", "k": "4:8"})
    assert (found.rule, found.level, found.node) == ("sparse-kernels", "warning", "k")
    assert "4:8 runs densely" in found.text


def test_float32_body(tmp_path: Path) -> None:
    found = findings(clean(np.float32), tmp_path)
    assert [(item.rule, item.level) for item in found] == [("float32-body", "warning")]
    assert found[0].text.startswith("6 products compute in float32")


def test_float_attention_with_an_integer_projection_is_complete(tmp_path: Path) -> None:
    model = clean()
    for pair in "QKPV":
        bypass(model, pair)
    assert findings(model, tmp_path) == []


def test_computed_zero_point_and_scale(tmp_path: Path) -> None:
    model = clean()
    model.graph.node.insert(0, helper.make_node("Sub", ["zero", "zero"], ["z"], name="sub"))
    model.graph.node.insert(0, helper.make_node("Add", ["Q.scale", "Q.scale"], ["s"], name="twice"))
    for name in ("Q.q", "Q.dq"):
        node(model, name).input[1], node(model, name).input[2] = "s", "z"
    found = findings(model, tmp_path)
    assert {(item.rule, item.node) for item in found} == {
        ("zero-point", "Q.q"), ("zero-point", "Q.dq"), ("scale", "Q.q"), ("scale", "Q.dq"),
    }  # fmt: skip


def test_missing_zero_points_are_zeros(tmp_path: Path) -> None:
    model = clean()
    for item in model.graph.node:
        if item.op_type == "DequantizeLinear":
            del item.input[2:]
    assert findings(model, tmp_path) == []


def product(op: str, layout: str, tmp_path: Path, keep: bool) -> list[Any]:
    """One product with a weight that is 2:4 along K (or, with `keep` false, along N only), in one orientation."""
    rows = np.tile(np.array([0, 5, 0, 7], np.int8), (32, 8))  # [N, K], 2:4 along K
    rows[::2] = np.roll(rows[::2], 1, axis=1)
    if not keep:
        rows = np.tile(np.array([[5], [7], [0], [0]], np.int8), (8, 32))
    b = Block()
    b.constant("scale", np.full(32, 0.01, np.float16))
    b.constant("zeros", np.zeros(32, np.int8))
    value = b.pair(b.add("Reshape", ["x", b.constant("shape", np.array([-1, WIDTH]))], "flat"), "in")
    stored, axis, attributes, transposed = rows, 0, {}, layout == "transposed"
    if op == "Conv":
        value = b.pair(b.add("Reshape", ["x", b.constant("image", np.array([-1, WIDTH, 4, 4]))], "image"), "in")
        stored = np.stack([rows] * 4, axis=-1).reshape(32, 32, 2, 2)
    elif op == "MatMul" or layout == "transB=0":
        stored, axis = (rows, 0) if transposed else (rows.T.copy(), 1)
    if op == "Gemm":
        attributes = {"transB": int(layout == "transB=1")}
    weight = b.add("DequantizeLinear", [b.constant("w", stored), "scale", "zeros"], "w.dq", axis=axis)
    if transposed:
        weight = b.add("Transpose", [weight], "w.t", perm=[1, 0])
    if layout == "transA":
        value = b.add("Transpose", [value], "x.t", perm=[1, 0])
        attributes = {"transA": 1, "transB": 1}
    output = b.add(op, [value, weight], "product", **attributes)
    return findings(b.model(output, rank=4 if op == "Conv" else 2), tmp_path, {"w": "2:4"})


@pytest.mark.parametrize(
    ("op", "layout"),
    [("MatMul", ""), ("MatMul", "transposed"), ("Gemm", "transB=0"), ("Gemm", "transB=1"), ("Gemm", "transA"),
     ("Conv", "")],
)  # fmt: skip
def test_orientation_of_2_to_4(op: str, layout: str, tmp_path: Path) -> None:
    assert product(op, layout, tmp_path, keep=True) == []
    assert [item.rule for item in product(op, layout, tmp_path, keep=False)] == ["sparsity"]


def test_float_weights_are_judged_after_quantising(tmp_path: Path) -> None:
    """Values that round to zero count as zeros; a dense float weight does not."""
    for third, rules in ((0.001, []), (0.05, ["sparsity"])):
        b = Block()
        weight = np.tile(np.array([0.3, 0.2, third, 0], np.float16), (32, 8))
        inputs = [b.constant("scale", np.full(32, 0.01, np.float16)), b.constant("zeros", np.zeros(32, np.int8))]
        codes = b.add("QuantizeLinear", [b.constant("w", weight), *inputs], "w.q", axis=0)
        dequantized = b.add("DequantizeLinear", [codes, *inputs], "w.dq", axis=0)
        flat = b.add("Reshape", ["x", b.constant("shape", np.array([-1, WIDTH]))], "flat")
        model = b.model(b.add("Gemm", [b.pair(flat, "in"), dequantized], "product", transB=1), rank=2)
        assert [item.rule for item in findings(model, tmp_path, {"w": "2:4"})] == rules


def test_claims(tmp_path: Path) -> None:
    model = clean()
    dense(model)
    assert findings(model, tmp_path, {}) == []
    path = tmp_path / "block.onnx"
    assert [item.node for item in lint_file(path, ["k*"])] == ["k"]
    assert lint_file(path, ["q", "proj"]) == []
    assert [item.text for item in lint_file(path, ["nothing"])] == [
        "claimed to be sparse, but no product of the file has a weight of that name"
    ]
    model.metadata_props.add(key=SPARSE, value=json.dumps({"k": "2:4", "gone": "2:4", "q": "4:8"}))
    onnx.save_model(model, str(path))
    assert [(item.rule, item.node) for item in lint_file(path)] == [
        ("sparsity", "gone"), ("sparsity", "k"), ("sparse-kernels", "q"),
    ]  # fmt: skip
    model.metadata_props[0].value = '{"k": "two"}'
    onnx.save_model(model, str(path))
    with pytest.raises(InputError, match=r"metadata vitcompress\.sparse"):
        lint_file(path)


def test_head_size(tmp_path: Path) -> None:
    model = clean()
    value = value_of(model, "split").copy()
    value[2:] = (4, 8)
    constant(model, "split", value)
    found = findings(model, tmp_path)
    assert [(item.rule, item.node) for item in found] == [("attention-shape", "scores")]
    assert "head size 8; fused kernels take 16, 32 or 64" in found[0].text


def test_int4_needs_opset_21(tmp_path: Path) -> None:
    b = Block()
    packed = helper.make_tensor("w", onnx.TensorProto.INT4, [WIDTH, WIDTH], np.zeros((WIDTH, WIDTH)))
    b.constants.append(packed)
    weight = b.add("DequantizeLinear", ["w", b.constant("s", np.ones(WIDTH, np.float16))], "w.dq", axis=1)
    model = b.model(b.add("MatMul", ["x", weight], "product"))
    assert findings(model, tmp_path, {}) == []
    model.opset_import[0].version = 20
    assert [(item.rule, item.node) for item in findings(model, tmp_path, {})] == [("opset", "w.dq")]


def test_half_precision_scales_need_opset_19(tmp_path: Path) -> None:
    assert findings(clean(opset=19), tmp_path) == []
    found = [item for item in findings(clean(opset=18), tmp_path) if item.rule == "opset"]
    assert [item.node for item in found] == ["norm.q"]
    assert found[0].text.startswith("half-precision scales in opset 18; allowed from opset 19 on")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    onnx.save_model(clean(), str(good))
    model = clean()
    dense(model)
    zero_point(model)
    onnx.save_model(model, str(bad))
    assert main(["verify", str(good), "--target", "tensorrt"]) == 0
    assert "nothing" in capsys.readouterr().out
    assert main(["verify", str(bad), "--target", "tensorrt", "--sparse", "k", "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["errors"] == 3 and {item["rule"] for item in found["findings"]} == {"zero-point", "sparsity"}
    assert main(["verify", str(tmp_path / "none.onnx"), "--target", "tensorrt"]) == 2
    assert main(["verify", str(good), "--sparse", "k"]) == 2
    assert "--target tensorrt" in capsys.readouterr().err


def test_folder_names_its_file_and_its_claims(tmp_path: Path) -> None:
    folder = shutil.copytree(standard_artifact()[0], tmp_path / "artifact")
    assert pick_file(tmp_path) == pick_file(folder) == folder / "model.onnx"
    found = lint_file(folder / "model.onnx")
    assert [item for item in found if item.level == ERROR] == []
    assert {item.rule for item in found} == {"alignment", "float32-body"}
    arch = json.loads((folder / "arch.json").read_text())
    arch["edits"].append({"op": "mask", "layers": ["head"], "pattern": "2:4"})
    (folder / "arch.json").write_text(json.dumps(arch))
    assert [item.node for item in lint_file(folder / "model.onnx") if item.level == ERROR] == ["head/MatMul"]
    (folder / "model.onnx").unlink()
    with pytest.raises(InputError, match="holds neither"):
        pick_file(tmp_path)
