"""The last block computes what the classifier reads, and the logits stay the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from export_support import SIZE, VIT, base_model, calibrate, images, linear_names, quantize_edit
from onnx import TensorProto, helper

from act.edits import apply_edits
from act.export import export_onnx
from act.export.tokens import keep_read_tokens

LAST = ["attn/MatMul", "attn/MatMul_2", "attn.proj/MatMul", "mlp.fc1/MatMul", "mlp.fc2/MatMul"]


def logits(path: Path, batch: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": batch})[0])


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"])
def test_the_last_block_runs_on_the_tokens_that_are_read(name: str, quantized: bool, tmp_path: Path) -> None:
    model = base_model(name, **VIT)
    if quantized:
        apply_edits(model, [quantize_edit([layer for layer in linear_names(model) if layer.startswith("blocks")])])
        calibrate(model, images())
    export_onnx(model, tmp_path / "a.onnx", SIZE)
    file = onnx.load(tmp_path / "a.onnx")
    assert keep_read_tokens(file) == [f"blocks.1.{product}" for product in LAST]
    onnx.checker.check_model(file, full_check=True)
    onnx.save(file, tmp_path / "b.onnx")
    tokens = 2 if "distilled" in name else 1
    inferred = onnx.shape_inference.infer_shapes(file).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.value_info}
    made = {node.name: shapes[node.output[0]] for node in file.graph.node if node.name.startswith("blocks.1.mlp.fc1/")}
    assert made["blocks.1.mlp.fc1/MatMul"][1:] == [tokens, 4 * 48]
    for count in (1, 3):
        batch = images(count).numpy()
        assert np.allclose(logits(tmp_path / "a.onnx", batch), logits(tmp_path / "b.onnx", batch), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("vit_tiny_patch16_224", VIT | {"global_pool": "avg", "fc_norm": False}),
        ("swin_tiny_patch4_window7_224", {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depths": (1, 1),
                                          "num_heads": (2, 4), "window_size": 4, "num_classes": 10}),
    ],
)  # fmt: skip
def test_a_mean_over_tokens_needs_them_all(name: str, kwargs: dict[str, Any], tmp_path: Path) -> None:
    export_onnx(base_model(name, **kwargs), tmp_path / "a.onnx", SIZE)
    file = onnx.load(tmp_path / "a.onnx")
    before = file.SerializeToString()
    assert keep_read_tokens(file) == []
    assert file.SerializeToString() == before


def test_a_value_that_something_else_reads_stays_whole() -> None:
    """y = x W; its first token is read, and so is the mean of another product of all tokens of y."""
    value = helper.make_tensor_value_info
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], np.eye(4, dtype=np.float32).tobytes(), raw=True)
    zero = helper.make_tensor("zero", TensorProto.INT64, [], [0])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="first"),
        helper.make_node("MatMul", ["y", "w"], ["z"], name="second"),
        helper.make_node("ReduceMean", ["y"], ["mean"], name="mean"),
        helper.make_node("Gather", ["z", "zero"], ["token"], axis=1, name="pick"),
    ]
    outputs = [value("token", 1, ["batch", 4]), value("mean", 1, None)]
    graph = helper.make_graph(nodes, "g", [value("x", 1, ["batch", 5, 4])], outputs, [weight, zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    assert keep_read_tokens(model) == ["second"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.arange(40, dtype=np.float32).reshape(2, 5, 4)
    token, mean = session.run(None, {"x": x})
    assert np.array_equal(token, x[:, 0]) and np.isclose(mean.reshape(()), x.mean())
