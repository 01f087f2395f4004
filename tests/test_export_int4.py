"""Weights in groups of 4 bits: packed in the file, exact against torch, smaller on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_support import SIZE, VIT, base_model, images, linear_names, quantize_edit
from onnx.reference import ReferenceEvaluator

from act.edits import apply_edits
from act.errors import InputError
from act.export import export_onnx
from act.layers import compressed_layers
from act.quant.calibrate import set_weight_scale
from act.quant.fake_quant import FakeQuantize
from act.verify.match import Expected, inputs_match, weights_match
from act.verify.onnx_file import OnnxFile
from act.verify.rules import Broken, standard_onnx, symmetric

KWARGS = VIT | {"embed_dim": 64, "num_heads": 2}


def grouped(size: int = 32) -> tuple[torch.nn.Module, Expected]:
    model = base_model("vit_tiny_patch16_224", **KWARGS)
    names = [name for name in linear_names(model, convolutions=False) if name.startswith("blocks")]
    edit = quantize_edit(names, weight_bits=4, activation_bits=0, weight_group_size=size)
    apply_edits(model, [edit])
    for _, layer in compressed_layers(model):
        set_weight_scale(layer)
    return model, Expected.from_edits([edit])


def test_groups_round_like_the_formula_in_float64() -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    quantizer = FakeQuantize(4, channels=6, groups=4)
    quantizer.set_range(weight.reshape(6, 4, 16).abs().amax(-1))
    wide = weight.double().reshape(6, 4, 16)
    scale = quantizer.scale.double()[..., None]
    expected = ((wide / scale).round().clamp(-7, 7) * scale).reshape(6, 64)
    assert torch.allclose(quantizer(weight).double(), expected, atol=1e-6)
    assert torch.equal(quantizer.codes(weight).double(), (wide / scale).round().reshape(6, 64))


def test_the_file_holds_packed_int4_and_computes_what_torch_computes(tmp_path: Path) -> None:
    model, expected = grouped()
    export_onnx(model, tmp_path / "a.onnx", SIZE, opset=19)
    file = OnnxFile(tmp_path / "a.onnx")
    assert standard_onnx(file).startswith("opset 21")
    assert symmetric(file) == "8 Q/DQ nodes"
    packed = [tensor for tensor in file.graph.initializer if tensor.data_type == onnx.TensorProto.INT4]
    assert len(packed) == 8 and all(len(t.raw_data) == np.prod(t.dims) / 2 for t in packed)
    assert weights_match(file, model.state_dict(), expected).startswith("8 integer weights")
    assert inputs_match(file, model.state_dict(), expected) == "8 products"
    batch = images(2)
    with torch.no_grad():
        wanted = model(batch).numpy()
    (found,) = ReferenceEvaluator(file.model).run(None, {"images": batch.numpy()})
    assert np.allclose(found, wanted, atol=1e-5)


def test_a_flipped_code_or_scale_is_found(tmp_path: Path) -> None:
    model, expected = grouped()
    export_onnx(model, tmp_path / "a.onnx", SIZE)
    for suffix, message in ((".weight_int4", "1 weights differ"), (".weight_quantizer.scale", "scales")):
        damaged = onnx.load(tmp_path / "a.onnx")
        tensor = next(item for item in damaged.graph.initializer if item.name.endswith(suffix))
        codes = bytearray(tensor.raw_data)
        codes[3] ^= 1
        tensor.raw_data = bytes(codes)
        onnx.save(damaged, tmp_path / "b.onnx")
        with pytest.raises(Broken, match=message):
            weights_match(OnnxFile(tmp_path / "b.onnx"), model.state_dict(), expected)


def test_a_group_size_that_does_not_divide_is_refused() -> None:
    # 48 leaves a rest of 64, and 64 would be one group: a scale per channel, which is stored in another way.
    for size in (48, 64):
        with pytest.raises(InputError, match=rf"blocks\.0\.attn\.qkv: weight_group_size {size} does not divide"):
            grouped(size)
