"""The form that is converted for OpenVINO is the same function, and standard ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from export_support import SIZE, VIT, base_model, calibrate, images, linear_names, quantize_edit

from act.edits import apply_edits
from act.export import export_onnx
from act.export.openvino import to_openvino_form
from act.quant.matmul import attention_modules

SWIN = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "num_classes": 10}
# (model, arguments, attentions whose projection is taken apart, products on read tokens: the query's and 5 more)
FAMILIES: dict[str, tuple[dict[str, Any], int, int]] = {
    "vit_tiny_patch16_224": (VIT, 2, 6),
    "deit_tiny_distilled_patch16_224": (VIT, 2, 6),
    "deit3_small_patch16_224": (VIT, 2, 6),
    "swin_tiny_patch4_window7_224": (SWIN | {"window_size": 4}, 4, 0),
}


def exported(name: str, folder: Path, attention: bool) -> Path:
    model = base_model(name, **FAMILIES[name][0])
    layers = [layer for layer in linear_names(model, convolutions=False) if "head" not in layer]
    edits = [quantize_edit(layers)]
    if attention:
        edits.append({"op": "quantize_matmul", "layers": attention_modules(model), "activation_bits": 8})
    apply_edits(model, edits)
    calibrate(model, images())
    export_onnx(model, folder / "a.onnx", SIZE)
    return folder / "a.onnx"


def logits(model: onnx.ModelProto, batch: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    # As it stands: an optimiser would fuse the two graphs in different ways.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": batch})[0])


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_the_same_function(name: str, attention: bool, tmp_path: Path) -> None:
    main = onnx.load(exported(name, tmp_path, attention))
    form = onnx.ModelProto()
    form.CopyFrom(main)
    made = to_openvino_form(form)
    onnx.checker.check_model(form, full_check=True)
    _, projections, narrow = FAMILIES[name]
    assert made["split projections"] == projections
    assert made["products on read tokens only"] == narrow
    # Query, key and value, and what the projection reads; the probabilities are not moved.
    assert made["pairs before transposes"] >= projections * (3 if attention else 1)
    for count in (1, 3):
        batch = images(count, seed=3).numpy()
        before, after = logits(main, batch), logits(form, batch)
        # The factor of the query moves into scales, which may round a code the other way.
        assert np.abs(before - after).mean() < 5e-3 * np.abs(before).mean()


def test_without_quantisers_in_attention_its_products_are_float(tmp_path: Path) -> None:
    main = onnx.load(exported("vit_tiny_patch16_224", tmp_path, attention=True))
    to_openvino_form(main, "float")
    quantized = [node.name for node in main.graph.node if node.op_type == "QuantizeLinear"]
    assert not [name for name in quantized if "matmul_quantizers" in name]
    assert len([name for name in quantized if "input_quantizer" in name]) == 8
