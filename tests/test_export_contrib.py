"""The form in ONNX Runtime's own operators computes what the main file computes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from export_support import SIZE, VIT, base_model, calibrate, images, linear_names, quantize_edit
from onnx import helper

from act.edits import apply_edits
from act.export import export_onnx
from act.export.contrib import DOMAIN, export_contrib, to_contrib
from act.verify.contrib_file import contrib_file
from act.verify.rules import Broken

SWIN = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "num_classes": 10}
FAMILIES = {
    "vit_tiny_patch16_224": (VIT, 2),
    "deit_tiny_distilled_patch16_224": (VIT, 2),
    "deit3_small_patch16_224": (VIT, 2),
    "swin_tiny_patch4_window7_224": (SWIN | {"window_size": 4}, 0),  # its position bias is no part of the pattern
}


def rewritten(source: Path, target: Path, attention: str = "int8") -> tuple[Counter[str], dict[str, int]]:
    made = export_contrib(source, target, attention)
    model = onnx.load(target)
    onnx.checker.check_model(model)
    return Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN), made


def logits(path: Path, batch: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": batch})[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_is_the_same_function(name: str, tmp_path: Path) -> None:
    kwargs, attentions = FAMILIES[name]
    export_onnx(base_model(name, **kwargs), tmp_path / "a.onnx", SIZE)
    found, made = rewritten(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert found["MultiHeadAttention"] == made["MultiHeadAttention"] == attentions
    for count in (1, 3):  # the batch stays dynamic
        batch = images(count).numpy()
        assert np.allclose(logits(tmp_path / "a.onnx", batch), logits(tmp_path / "b.onnx", batch), atol=1e-4)


@pytest.mark.parametrize("bits", [8, 4])
def test_integer_products_keep_their_codes_and_take_the_bias_in(bits: int, tmp_path: Path) -> None:
    model = base_model("vit_tiny_patch16_224", **VIT)
    names = [name for name in linear_names(model, convolutions=False) if name.startswith("blocks")]
    apply_edits(model, [quantize_edit(names, activation_bits=bits)])
    calibrate(model, images())
    export_onnx(model, tmp_path / "a.onnx", SIZE)
    found, made = rewritten(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert found == Counter({"MatMulIntegerToFloat": 7, "QAttention": 1, "MultiHeadAttention": 1})
    assert made == dict(found) | {"products on read tokens only": 4}  # the last block's: attention, proj, fc1, fc2
    graph = onnx.load(tmp_path / "b.onnx").graph
    for node in graph.node:
        if node.op_type == "MatMulIntegerToFloat":
            assert len(node.input) == 7 and node.input[6].endswith("bias")
        if node.op_type == "QAttention":
            assert node.input[2].endswith("qkv.bias")
    assert not [node.name for node in graph.node if node.op_type == "DequantizeLinear"]
    batch = images(4, seed=5).numpy()
    before, after = logits(tmp_path / "a.onnx", batch), logits(tmp_path / "b.onnx", batch)
    # A last bit may round another way; the step of 4 bits is sixteen times as large.
    assert np.abs(before - after).mean() < 1e-3 * np.abs(before).mean() * (16 if bits == 4 else 1)


@pytest.mark.parametrize("form", ["int8", "float"])
def test_quantised_attention_in_both_forms(form: str, tmp_path: Path) -> None:
    model = base_model("vit_tiny_patch16_224", **VIT)
    names = [name for name in linear_names(model, convolutions=False) if name.startswith("blocks")]
    attentions = [f"blocks.{index}.attn" for index in range(2)]
    apply_edits(model, [quantize_edit(names), {"op": "quantize_matmul", "layers": attentions, "activation_bits": 8}])
    calibrate(model, images())
    export_onnx(model, tmp_path / "a.onnx", SIZE)
    found, _ = rewritten(tmp_path / "a.onnx", tmp_path / "b.onnx", form)
    # int8: query, key, value, scores, proj, fc1, fc2 of each block; the second product is fused by the runtime itself.
    assert found["MatMulIntegerToFloat"] == (14 if form == "int8" else 7)
    assert found["QAttention"] + found["MultiHeadAttention"] == (0 if form == "int8" else 2)
    batch = images(4, seed=5).numpy()
    before, after = logits(tmp_path / "a.onnx", batch), logits(tmp_path / "b.onnx", batch)
    error = np.abs(before - after).mean() / np.abs(before).mean()
    assert error < (1e-3 if form == "int8" else 0.05)
    assert contrib_file(tmp_path / "a.onnx", tmp_path / "b.onnx")


def test_a_flipped_weight_in_it_is_found(tmp_path: Path) -> None:
    model = base_model("vit_tiny_patch16_224", **VIT)
    apply_edits(model, [quantize_edit(["blocks.1.mlp.fc1"])])
    calibrate(model, images())
    main, own = tmp_path / "a.onnx", tmp_path / "b.onnx"
    export_onnx(model, main, SIZE)
    rewritten(main, own)
    assert contrib_file(main, own).startswith("2 MultiHeadAttention, 1 MatMulIntegerToFloat")
    file = onnx.load(own)
    tensor = next(item for item in file.graph.initializer if item.name.endswith("fc1.weight_int8"))
    codes = bytearray(tensor.raw_data)
    codes[7] ^= 1
    tensor.raw_data = bytes(codes)
    onnx.save(file, own)
    with pytest.raises(Broken, match=r"blocks\.1\.mlp\.fc1\.weight_int8"):
        contrib_file(main, own)
    rewritten(main, own)
    file = onnx.load(own)
    node = next(item for item in file.graph.node if item.op_type == "MultiHeadAttention")
    node.input[1] = node.input[2]
    onnx.save(file, own)
    with pytest.raises(Broken, match="graph"):
        contrib_file(main, own)


def test_what_is_no_such_pattern_stays(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Softmax", ["images"], ["p"]),
        helper.make_node("MatMul", ["p", "images"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "g", [value("images", 1, [2, 2])], [value("logits", 1, [2, 2])])
    model = helper.make_model(graph)
    before = model.SerializeToString()
    assert not any(to_contrib(model).values())
    assert model.SerializeToString() == before
