"""Equalisation, calibration and bias correction on a real timm ViT with an outlier channel."""

import math
from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from act.context import Context
from act.data.batch import Batch
from act.layers import CompressedLinear, compressed_layers, quantize_layers
from act.quant.calibrate import activation_quantizers, best_clip, calibrate
from act.quant.config import QuantConfig
from act.quant.equalize import equalize
from act.quant.folds import find_folds
from act.quant.matmul import attention_modules, quantize_matmuls
from act.quant.prepare import prepare_quantized
from act.quant.rows import Grid
from act.recipe.schema import Recipe

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    built = timm.create_model("vit_tiny_patch16_224", **SIZE).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        built.blocks[1].norm1.weight[5] = 30.0  # an outlier channel after a norm: can be folded
        built.blocks[1].mlp.fc1.bias[7] = 60.0  # and one after a GELU: cannot
        built.blocks[1].mlp.fc2.weight[:, 7] *= 0.02
    return built


@pytest.fixture
def images() -> Tensor:
    return torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Data:
    """What strategies read of a data bundle."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def calibration(self, images: int, batch_size: int) -> Any:
        return [Batch(part, None) for part in self.images[:images].split(batch_size)]


def linear_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def test_folds_are_norms_before_linears_and_values_before_projections(model: nn.Module, images: Tensor) -> None:
    readers = {fold.producer: fold.readers for fold in find_folds(model, images[:2])}
    assert readers["blocks.0.norm1"] == ("blocks.0.attn.qkv",)
    assert readers["blocks.1.norm2"] == ("blocks.1.mlp.fc1",)
    assert readers["blocks.1.attn.qkv"] == ("blocks.1.attn.proj",)
    assert not any(name.endswith("fc1") for name in readers)


def test_equalisation_keeps_the_function_and_flattens_outliers(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        before = model(images)
        found = equalize(model, linear_names(model), [images], 16, Grid(8, 8))
        assert "blocks.1.attn.qkv" in found.folded
        assert "blocks.1.mlp.fc2" in found.inserted
        for name, factor in found.inserted.items():
            layer = model.get_submodule(name)
            layer.weight.data.div_(factor)  # type: ignore[operator,union-attr]
            layer.register_forward_pre_hook(lambda _, inputs, f=factor: (inputs[0] * f,))
        assert torch.allclose(model(images), before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))


def test_with_few_bits_a_factor_is_inserted_for_what_it_saves(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = linear_names(model)
    bits = {8: Grid(8, 8), 4: Grid(4, 4)}
    inserted = {key: set(equalize(deepcopy(model), names, [images], 16, grid).inserted) for key, grid in bits.items()}
    assert inserted[8] == {"blocks.1.mlp.fc2"} < inserted[4]
    few = {"weight_bits": 4, "activation_bits": 4}
    error = error_after(model, images, **few)
    monkeypatch.setattr("act.quant.equalize.INSERT_SAVING", math.inf)
    assert error < 0.9 * error_after(model, images, **few)


def test_an_outlier_is_one_whatever_the_bits(model: nn.Module, images: Tensor) -> None:
    mlp: Any = model.blocks[1].mlp  # type: ignore[index,union-attr]
    with torch.no_grad():
        mlp.fc1.weight[7] *= 300  # a hidden unit that is huge for few tokens
        mlp.fc1.bias[7], mlp.fc2.weight[:, 7] = -100, 0.1
    for grid in (Grid(8, 8), Grid(4, 4), Grid(2, 2)):
        found = equalize(deepcopy(model), linear_names(model), [images], 16, grid)
        assert found.outliers(20) == ["blocks.1.mlp.fc2"] and found.outliers(0) == [], grid


def test_a_norm_that_something_else_reads_is_not_folded(images: Tensor) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(3 * 32), nn.Linear(3 * 32, 10)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x.flatten(1, 1).permute(0, 2, 1, 3).reshape(len(x), 32, 96))
            return (self.fc(y) + y[..., :10] ** 2).mean(1)

    odd = Odd()
    odd.norm.weight.data[3] = 40.0
    before = odd(images)
    found = equalize(odd, ["fc"], [images], 16, Grid(8, 8))
    assert found.folded == []
    assert "norm" in found.undone[0][1]
    assert torch.equal(odd.norm.weight.data[3], torch.tensor(40.0))
    with torch.no_grad():
        scaled = images if "fc" not in found.inserted else None
    if scaled is not None:
        assert torch.allclose(odd(images), before, atol=1e-5)


def error_after(model: nn.Module, images: Tensor, **options: Any) -> float:
    ctx = Context(Recipe(), (3, 32, 32), Data(images))  # type: ignore[arg-type]
    quantized = deepcopy(model)
    with torch.no_grad():
        before = model(images)
        prepare_quantized(quantized, QuantConfig(images=16, **options), ctx, "fixed")
        return float((quantized(images) - before).square().mean() / before.var())


def test_the_defaults_beat_plain_minmax_by_far(model: nn.Module, images: Tensor) -> None:
    plain = error_after(model, images, equalize=False, calibration="minmax", bias_correction=False)
    default = error_after(model, images)
    assert default < plain / 3
    assert default < 0.01


def test_bits_are_applied(model: nn.Module, images: Tensor) -> None:
    errors = [error_after(model, images, weight_bits=bits, activation_bits=bits) for bits in (8, 5, 3)]
    assert errors[0] < errors[1] < errors[2]


def test_best_clip_is_never_worse_than_the_largest_value() -> None:
    rows = torch.distributions.StudentT(3.0).sample((20, 200))
    for qmax in (1, 7, 127):
        clip, largest = best_clip(rows, qmax), rows.abs().amax(1)

        def error(c: Tensor, qmax: int = qmax) -> Tensor:
            scale = (c / qmax)[:, None]
            return ((rows / scale).round().clamp(-qmax, qmax) * scale - rows).square().sum(1)

        assert bool((error(clip) <= error(largest) * 1.0001).all())


def test_bias_correction_removes_the_mean_error(model: nn.Module, images: Tensor) -> None:
    names = [name for name in linear_names(model) if name != "head"]
    quantize_layers(model, {name: {"weight_bits": 4, "activation_bits": 4} for name in names})
    inputs: dict[str, Tensor] = {}
    layer = model.get_submodule("blocks.0.attn.qkv")
    assert isinstance(layer, CompressedLinear)
    dense, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    layer.register_forward_pre_hook(lambda _, args: inputs.__setitem__("x", args[0]))
    found = calibrate(model, [images], 16, QuantConfig(weight_bits=4, activation_bits=4))
    assert found.corrected == len(names)
    with torch.no_grad():
        model(images)
        x = inputs["x"].reshape(-1, 48)
        mean = (layer(x) - (x @ dense.t() + bias)).mean(0)
        uncorrected = (layer(x) - layer.bias + bias - (x @ dense.t() + bias)).mean(0)
    assert float(mean.norm()) < 0.2 * float(uncorrected.norm())


def test_attention_products_go_through_their_quantisers(model: nn.Module, images: Tensor) -> None:
    names = attention_modules(model)
    assert names == ["blocks.0.attn", "blocks.1.attn"]
    with torch.no_grad():
        before = model(images)
        quantize_matmuls(model, names, 8)
        for quantizer in activation_quantizers(model).values():
            quantizer.enabled = False
        assert torch.allclose(model(images), before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
        for quantizer in activation_quantizers(model).values():
            quantizer.enabled = True
        calibrate(model, [images], 16, QuantConfig())
        changed = model(images)
    assert len(activation_quantizers(model)) == 8
    assert 0 < float((changed - before).square().mean() / before.var()) < 0.05


def test_every_scale_was_set(model: nn.Module, images: Tensor) -> None:
    ctx = Context(Recipe(), (3, 32, 32), Data(images))  # type: ignore[arg-type]
    config = QuantConfig(quantize_op_types=["conv2d", "linear", "matmul"], first_and_last=True)
    prepare_quantized(model, config, ctx, "pact")
    scales = [q.scale.detach() for q in activation_quantizers(model).values()]
    assert len(scales) == 10 + 8 and all(float(s) not in (0.0, 1.0) for s in scales)
    assert all(layer.weight_quantizer is not None for _, layer in compressed_layers(model))
