"""Tiny compressed models for the tests of export, verification and rebuilding."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import timm
import torch
from torch import Tensor, nn

from act.edits import apply_edits
from act.export import export_onnx
from act.layers import compressed_layers
from act.quant.fake_quant import FakeQuantize
from act.rebuild import save_model
from act.sparsity.masks import nm_mask
from act.verify.manifest import write_manifest

VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}
SIZE = (3, 32, 32)

DIGITS = """
name: digits
model:
  name: vit_tiny_patch16_224
  checkpoint: model.safetensors
  num_classes: 10
  kwargs: {img_size: 16, patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}
data: {train: 'builtin:digits.tar/train', val: 'builtin:digits.tar/val', limit_val: 48, workers: 0}
QuantPost: {images: 16}
export: {benchmark: false}
"""


class MinMax:
    """The largest magnitude seen."""

    def __init__(self) -> None:
        self.largest = torch.zeros(())

    def update(self, x: Tensor) -> None:
        self.largest = torch.maximum(self.largest, x.abs().max())


def images(count: int = 4, size: tuple[int, int, int] = SIZE, seed: int = 0) -> Tensor:
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(seed))


def base_model(name: str = "vit_tiny_patch16_224", **kwargs: Any) -> nn.Module:
    """A timm model whose biases and norms are not at their trivial initial values."""
    torch.manual_seed(1)
    model = timm.create_model(name, **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def quantize_edit(names: list[str], weight_bits: int = 8, activation_bits: int = 8, **more: Any) -> dict[str, Any]:
    spec = {"weight_bits": weight_bits, "activation_bits": activation_bits, **more}
    return {"op": "quantize", "layers": {name: dict(spec) for name in names}}


def calibrate(model: nn.Module, batch: Tensor) -> list[str]:
    """Set every scale by the min-max of one batch; returns the activation quantisers that saw nothing."""
    activations = {n: m for n, m in model.named_modules() if isinstance(m, FakeQuantize) and m.channels is None}
    for _, layer in compressed_layers(model):
        if layer.weight_quantizer is not None:
            layer.weight_quantizer.set_range(layer.weight.detach().flatten(1).abs().amax(1))
    for quantizer in activations.values():
        quantizer.observer = MinMax()
    with torch.no_grad():
        model(batch)
    unseen = []
    for name, quantizer in activations.items():
        largest = quantizer.observer.largest
        quantizer.observer = None
        quantizer.set_range(largest)
        if largest == 0:
            unseen.append(name)
    return unseen


def linear_names(model: nn.Module, convolutions: bool = True) -> list[str]:
    kinds = (nn.Linear, nn.Conv2d) if convolutions else (nn.Linear,)
    return [name for name, module in model.named_modules() if type(module) in kinds]


def fill_masks(model: nn.Module) -> None:
    """2:4 magnitude masks, baked into the weights as a strategy's finalize does."""
    with torch.no_grad():
        for _, layer in compressed_layers(model):
            if layer.weight_mask is not None:
                layer.weight_mask.copy_(nm_mask(layer.weight.abs(), 2, 4))
                layer.weight *= layer.weight_mask


def compressed(edits: list[dict[str, Any]], **kwargs: Any) -> nn.Module:
    """The tiny ViT after `edits`, masks filled and scales calibrated."""
    model = apply_edits(base_model(**{**VIT, **kwargs}), edits)
    fill_masks(model)
    calibrate(model, images(8))
    return model


def standard_edits() -> list[dict[str, Any]]:
    """2:4 on the blocks, int8 everywhere."""
    names = linear_names(base_model(**VIT))
    blocks = [name for name in names if name.startswith("blocks.")]
    return [{"op": "mask", "layers": blocks, "pattern": "2:4"}, quantize_edit(names)]


def write_artifact(folder: Path, model: nn.Module, edits: list[dict[str, Any]]) -> None:
    """An artifact folder as a run writes it."""
    source = {"name": "vit_tiny_patch16_224", "kwargs": {k: v for k, v in VIT.items() if k != "num_classes"}}
    save_model(folder, model, {**source, "num_classes": VIT["num_classes"]}, edits)
    export_onnx(model, folder / "model.onnx", SIZE, metadata={"recipe_hash": "0" * 64})
    write_manifest(folder)


@cache
def standard_artifact() -> tuple[Path, nn.Module]:
    """One 2:4 int8 artifact shared by the tests; copy the folder before changing anything in it."""
    folder = Path(mkdtemp(prefix="vitcompress-test-"))
    model = compressed(standard_edits())
    write_artifact(folder, model, standard_edits())
    return folder, model
