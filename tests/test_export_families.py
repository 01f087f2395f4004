"""Export depends on no model family: the same contract for several, quantised throughout from one min-max."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from export_support import VIT, base_model, calibrate, images, linear_names, quantize_edit
from torch import nn

from act.backends.census import census
from act.edits import apply_edits
from act.export import export_onnx
from act.quant.matmul import attention_modules
from act.verify.onnx_file import OnnxFile
from act.verify.parity import OnnxRuntime, check_parity

SMALL: dict[str, Any] = VIT | {"embed_dim": 32, "depth": 1, "num_heads": 2}
SWIN: dict[str, Any] = {
    "img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": (1, 2), "num_heads": (1, 2),
    "num_classes": 10,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "deit_tiny_distilled_patch16_224": VIT | {"depth": 1},
    "swin_tiny_patch4_window7_224": SWIN,
    "cait_xxs24_224": SMALL | {"depth_token_only": 1},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "num_classes": 10, "conv_mlp": False},
    "beit_base_patch16_224": SMALL,
    "eva02_tiny_patch14_224": SMALL,
    "vit_small_patch14_dinov2": SMALL | {"reg_tokens": 2},
}
BYPASSED = {"beit_base_patch16_224": {"blocks.0.attn.qkv"}, "eva02_tiny_patch14_224": {"blocks.0.attn.qkv"}}
INT8_ATTENTION = {"swin_tiny_patch4_window7_224"}  # windows, masks and relative position biases around the products


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, tmp_path: Path) -> None:
    model = base_model(name, **FAMILIES[name])
    layers = [layer for layer in linear_names(model) if layer not in BYPASSED.get(name, set())]
    attention = attention_modules(model) if name in INT8_ATTENTION else []
    apply_edits(model, [quantize_edit(layers), {"op": "quantize_matmul", "layers": attention, "activation_bits": 8}])
    assert calibrate(model, images(4)) == []
    export_onnx(model, tmp_path / "m.onnx", (3, 32, 32))
    file = OnnxFile(tmp_path / "m.onnx")
    check_parity(file, model)
    counted = census(file.path)
    linear = {f"{layer}/MatMul" for layer in layers if isinstance(model.get_submodule(layer), nn.Linear)}
    assert linear <= set(counted.integer_nodes)
    assert counted.integer == len(linear) + 2 * len(attention)
    for count in (1, 3):
        assert OnnxRuntime().load(file.path).run(images(count).numpy()).shape == (count, 10)
