"""Inputs of 16 bits: one grid in torch, two int8 products in the file."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_support import SIZE, VIT, base_model, calibrate, images, linear_names, quantize_edit
from torch import nn

from act import AutoCompression
from act.api import load
from act.backends.census import census
from act.backends.onnxruntime import OnnxRuntime
from act.edits import apply_edits
from act.errors import InputError
from act.export import export_onnx
from act.export.contrib import export_contrib
from act.export.forms import WideQuantizeDequantize
from act.layers import CompressedLinear
from act.quant.calibrate import activation_quantizers
from act.quant.config import QuantConfig
from act.quant.fake_quant import FakeQuantize
from act.recipe.load import load_recipe
from act.run.runner import run
from act.verify.match import Expected, inputs_match
from act.verify.onnx_file import OnnxFile
from act.verify.rules import Broken, standard_onnx, symmetric


def wide_vit(bits: int = 16) -> tuple[nn.Module, Expected]:
    model = base_model("vit_tiny_patch16_224", **VIT)
    names = [name for name in linear_names(model, convolutions=False) if name.startswith("blocks")]
    edit = quantize_edit(names, activation_bits=bits)
    apply_edits(model, [edit])
    calibrate(model, images(8))
    return model, Expected.from_edits([edit])


def test_the_grid_in_float64() -> None:
    quantizer = FakeQuantize(16)
    quantizer.set_range(torch.tensor(3.0))
    assert (quantizer.qmin, quantizer.qmax) == (-32896, 32639)
    x = torch.linspace(-4, 4, 4001)
    scale = quantizer.scale.double()
    expected = (x.double() / scale).round().clamp(-32896, 32639) * scale
    assert (quantizer(x).double() - expected).abs().max() <= scale  # a tie in float32 may fall to either side
    assert torch.equal(quantizer.codes(x).double(), (expected / scale).round())


@pytest.mark.parametrize("size", [1.0, 2.0])  # the second half of the values is clipped
def test_two_int8_parts_are_the_grid(size: float) -> None:
    quantizer = FakeQuantize(16)
    quantizer.set_range(torch.tensor(1.0))
    form = WideQuantizeDequantize(quantizer, "q")
    x = size * (2 * torch.rand(5000, generator=torch.Generator().manual_seed(0)) - 1)
    high_scale, scale = form.high_scale.double(), form.scale.double()
    assert float(high_scale) == 256 * float(scale)
    high = (x.double() / high_scale).round().clamp(-128, 127) * high_scale
    low = ((x.double() - high) / scale).round().clamp(-128, 127) * scale
    assert ((high + low) - quantizer(x).double()).abs().max() <= 1.01 * scale


def test_the_grid_has_gradients_and_a_learned_range() -> None:
    quantizer = FakeQuantize(16, learn="pact")
    quantizer.set_range(torch.tensor(1.0))
    x = torch.tensor([-5.0, 0.3, 5.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 1.0, 0.0]
    assert quantizer.scale.grad is not None and quantizer.scale.grad.abs() > 0
    with pytest.raises(ValueError, match="for activations also 16"):
        FakeQuantize(16, channels=4)


@pytest.mark.parametrize("form", ["main", "onnxruntime"])
def test_the_file_runs_both_products_on_integers(form: str, tmp_path: Path) -> None:
    model, expected = wide_vit()
    path = tmp_path / "a.onnx"
    export_onnx(model, path, SIZE)
    file = OnnxFile(path)
    assert standard_onnx(file) and symmetric(file)
    assert inputs_match(file, model.state_dict(), expected) == "16 products"  # of 8 layers
    if form == "onnxruntime":
        made = export_contrib(path, tmp_path / "b.onnx", "float")
        assert made["MatMulIntegerToFloat"] == 16
        path = tmp_path / "b.onnx"
    else:
        assert census(path).integer == 16
    batch = images(3, seed=5)
    with torch.no_grad():
        wanted = model(batch).numpy()
    found = OnnxRuntime().load(path, 1).run(batch.numpy())
    assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()


def test_sixteen_bits_add_nothing_to_the_error_of_the_weights() -> None:
    batch = images(8)  # those of the calibration: nothing is clipped
    with torch.no_grad():
        outputs = {bits: wide_vit(bits)[0](batch) for bits in (0, 8, 16)}
    narrow, wide = ((outputs[bits] - outputs[0]).norm() for bits in (8, 16))
    assert wide < narrow / 100


def test_another_scale_of_the_high_part_is_found(tmp_path: Path) -> None:
    model, expected = wide_vit()
    export_onnx(model, tmp_path / "a.onnx", SIZE)
    damaged = onnx.load(tmp_path / "a.onnx")
    scale = next(item for item in damaged.graph.initializer if item.name.endswith("high_scale"))
    scale.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(scale), scale.name))
    onnx.save(damaged, tmp_path / "b.onnx")
    with pytest.raises(Broken, match="its products read inputs with scale"):
        inputs_match(OnnxFile(tmp_path / "b.onnx"), model.state_dict(), expected)


def test_wide_inputs_names_layers(tmp_path: Path) -> None:
    model = base_model("vit_tiny_patch16_224", **VIT)
    recipe = {"QuantPost": {"wide_inputs": ["*.fc2", "head"]}, "export": {"benchmark": False}}
    batch = images(8)
    done = AutoCompression(model, config=recipe, train_dataloader=[batch], save_dir=tmp_path / "run").compress()
    bits = {
        name: None if layer.input_quantizer is None else layer.input_quantizer.bits
        for name, layer in load(done.folder, copy.deepcopy(model)).named_modules()
        if isinstance(layer, CompressedLinear)
    }
    assert {name for name, found in bits.items() if found == 16} == {"blocks.0.mlp.fc2", "blocks.1.mlp.fc2", "head"}
    assert {found for name, found in bits.items() if "fc2" not in name and name != "head"} == {8}
    recipe["QuantPost"]["wide_inputs"] = ["blocks.0"]
    with pytest.raises(InputError, match=r"QuantPost\.wide_inputs: 'blocks\.0' matches nothing"):
        AutoCompression(model, config=recipe, train_dataloader=[batch], save_dir=tmp_path / "no").compress()


def test_impossible_combinations() -> None:
    (problem,) = QuantConfig(activation_bits=16, quantize_op_types=["linear", "matmul"]).problems()
    assert "quantize_op_types: matmul multiplies two activations of 8 bits or less" in problem
    (problem,) = QuantConfig(activation_bits=9).problems()
    assert problem == "activation_bits: 9; allowed: 2 to 8, 16, or 0 for floating point"


def test_a_run_that_lost_too_much_gives_the_worst_layers_16_bits(tmp_path: Path) -> None:
    words = ["~Prune", "~QuantAware", "~Distillation", "~TrainConfig", "QuantPost.activation_bits=3"]
    words += ["target.max_drop=null", "target.min_agreement=100", "target.attempts=2", "export.benchmark=false"]
    report = run(load_recipe("quickstart", [*words, "data.limit_val=200"]), tmp_path / "run").report
    first, second = report["attempts"]
    assert first["reason"] == "as the recipe says"
    assert second["reason"].startswith("QuantPost: 16-bit inputs for blocks.")
    named = second["reason"].removeprefix("QuantPost: 16-bit inputs for ").removesuffix(", which cost most").split(", ")
    model = load(tmp_path / "run" / "attempts" / "02")
    assert {q.bits for name in named if (q := model.get_submodule(name).input_quantizer) is not None} == {16}
    assert all(q.bits == 3 for name, q in activation_quantizers(model).items() if name.rpartition(".")[0] not in named)
