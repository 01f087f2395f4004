"""Appended tokens change nothing that is computed for the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from export_support import VIT, base_model, calibrate, images, linear_names, quantize_edit
from onnx import TensorProto, helper
from test_export_openvino import logits

from act.edits import apply_edits
from act.export import export_onnx
from act.export.onnx_graph import Graph
from act.export.openvino import to_openvino_form
from act.export.padding import pad_tokens, padding_obstacle
from act.quant.matmul import attention_modules

TINY = VIT | {"num_heads": 4}
# (model, arguments, tokens, values that are cut back to the real tokens)
FAMILIES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "class token": ("vit_tiny_patch16_224", VIT, 17, 0),
    "mean": ("vit_tiny_patch16_224", VIT | {"global_pool": "avg", "fc_norm": False}, 17, 1),
    "two tokens": ("deit_tiny_distilled_patch16_224", VIT, 18, 0),
    "layer scale": ("deit3_small_patch16_224", VIT, 17, 0),
    "registers": ("vit_small_patch14_reg4_dinov2", TINY, 21, 0),
    "attention pool": ("vit_base_patch16_siglip_224", TINY | {"img_size": 40}, 25, 0),
    "bias of positions": ("beit_base_patch16_224", TINY, 17, 1),
}
OBSTACLES: dict[str, tuple[str, dict[str, Any], str]] = {
    "windows": ("swin_tiny_patch4_window7_224", {"img_size": 24, "patch_size": 4, "embed_dim": 16, "depths": (1, 1),
                "num_heads": (2, 4), "window_size": 3, "num_classes": 10}, "treat its 9 tokens alike"),
    "class attention": ("cait_xxs24_224", TINY, "not all its attentions can be reached"),
    "rotary": ("eva02_tiny_patch14_224", TINY, "not all its attentions can be reached"),
    "multiple": ("vit_base_patch16_siglip_224", TINY, "its number of tokens, 16, is a multiple of 8 already"),
    "pyramid": ("pit_ti_224", {"img_size": 64, "num_classes": 10}, "its attentions see different numbers of tokens"),
}  # fmt: skip


def exported(name: str, kwargs: dict[str, Any], folder: Path, quantized: bool = False) -> onnx.ModelProto:
    size = (3, kwargs["img_size"], kwargs["img_size"])
    model = base_model(name, **kwargs)
    if quantized:
        layers = [layer for layer in linear_names(model, convolutions=False) if layer.startswith("blocks")]
        used = [
            layer for layer in layers if not (name.startswith("beit") and layer.endswith("qkv"))
        ]  # its weight is read
        attentions = {"op": "quantize_matmul", "layers": attention_modules(model), "activation_bits": 8}
        apply_edits(model, [quantize_edit(used), attentions])
        calibrate(model, images(size=size))
    export_onnx(model, folder / "a.onnx", size)
    return onnx.load(folder / "a.onnx")


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_stay_the_same(family: str, quantized: bool, tmp_path: Path) -> None:
    name, kwargs, tokens, cuts = FAMILIES[family]
    main = exported(name, kwargs, tmp_path, quantized)
    plain, padded, narrow = onnx.ModelProto(), onnx.ModelProto(), []
    for form in (plain, padded):
        form.CopyFrom(main)
        made = to_openvino_form(form, padded=form is padded)
        onnx.checker.check_model(form, full_check=True)
        narrow.append(made["products on read tokens only"])
    assert made["zero tokens appended"] == -tokens % 8
    assert narrow[0] == narrow[1]
    graph = Graph(padded)
    wide = [graph.shapes[attention.scores.output[0]][-1] for attention in graph.attentions()]
    assert wide == [tokens + -tokens % 8] * len(wide) and len(wide) >= 2
    assert sum(node.name.endswith("/real_tokens") for node in padded.graph.node) == cuts
    for count in (1, 3):
        batch = images(count, (3, kwargs["img_size"], kwargs["img_size"]), seed=3).numpy()
        before, after = logits(plain, batch), logits(padded, batch)
        difference = np.abs(before - after)
        if quantized:  # the order of sums changes the last bit of a value, which a quantiser may round the other way
            assert difference.mean() < 5e-3 * np.abs(before).mean()
        else:
            assert difference.max() < 2e-6


@pytest.mark.parametrize("family", OBSTACLES)
def test_other_graphs_stay_as_they_are(family: str, tmp_path: Path) -> None:
    name, kwargs, reason = OBSTACLES[family]
    main = exported(name, kwargs, tmp_path)
    before = main.SerializeToString()
    assert reason in (padding_obstacle(main) or "")
    assert pad_tokens(main) == 0 and main.SerializeToString() == before


def test_a_graph_whose_output_holds_tokens_stays_as_it_is() -> None:
    """x + softmax(x x^T) x of 3 tokens, and its mean over the tokens."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["r", "t"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"]),
        helper.make_node("MatMul", ["p", "r"], ["y"]),
        helper.make_node("ReduceMean", ["y"], ["mean"], keepdims=0),
    ]
    outputs = {name: value(name, TensorProto.FLOAT, shape) for name, shape in (("y", [1, 3, 4]), ("mean", None))}
    for name, reason in (("y", "not all its attentions can be reached"), ("mean", None)):
        graph = helper.make_graph(nodes, "g", [value("x", TensorProto.FLOAT, [1, 3, 4])], [outputs[name]])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        found = padding_obstacle(model)
        assert found is None if reason is None else reason in (found or "")
