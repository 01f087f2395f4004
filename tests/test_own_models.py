"""Models that are not timm's: blocks of torch.nn, products without a layer."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import act
from act import AutoCompression
from act.analysis import analyze
from act.context import Context
from act.errors import InputError
from act.recipe.schema import Recipe
from act.selection import select_layers
from act.strategies.transformer_prune import TransformerPrune

SIZE = (3, 32, 32)
WIDTH, TOKENS = 32, 16


class TorchViT(nn.Module):
    """Blocks of torch.nn, which in eval mode have fused code of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 8, 8)
        block = nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(images).flatten(2).transpose(1, 2)).mean(1))


class WithoutLayers(nn.Module):
    """Multiplies by parameters, by a view of one, and in a layer of a kind that stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(3, 3, 1)
        self.weight = nn.Parameter(torch.randn(1024, 8))
        self.pair = nn.Parameter(torch.randn(2, 8, 8))
        self.offset = nn.Parameter(torch.zeros(3, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.mix(images.flatten(2)) @ self.weight + self.offset
        return self.head(torch.einsum("bnc,cd->bnd", x, self.pair[1]).mean(1))


def test_weights_without_a_layer_are_left_with_the_reason() -> None:
    plan = select_layers(WithoutLayers(), SIZE, ["*"], [])
    assert plan.done == ["head"]
    reasons = {layer.name: layer.reason for layer in plan.left}
    assert set(reasons) == {"mix.weight", "weight", "pair"}
    assert reasons["mix.weight"].startswith("Conv1d multiplies by it itself")


def test_blocks_of_torch_are_entered_in_eval_mode() -> None:
    model = TorchViT().eval()
    plan = select_layers(model, SIZE, ["*"], [])
    layers = [f"encoder.layers.{block}.linear{number}" for block in (0, 1) for number in (1, 2)]
    assert plan.done == ["patches", *layers, "head"]
    left = {f"encoder.layers.{block}.self_attn.{name}" for block in (0, 1) for name in ("out_proj", "in_proj_weight")}
    assert {layer.name for layer in plan.left} == left
    called: list[str] = []
    for name in layers:
        model.get_submodule(name).forward = lambda x, name=name: (
            called.append(name) or torch.zeros(*x.shape[:-1], WIDTH)
        )
    with torch.no_grad():
        model(torch.randn(1, *SIZE))
    assert called == layers


def test_all_products_of_torch_blocks_are_counted() -> None:
    block = TOKENS * WIDTH * WIDTH * (3 + 1 + 8) + 2 * TOKENS * TOKENS * WIDTH
    assert analyze(TorchViT(), SIZE).macs == TOKENS * 3 * 64 * WIDTH + 2 * block + WIDTH * 5


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224"])
def test_parameters_that_are_inputs_of_layers_are_not_listed(name: str) -> None:
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 5}
    assert select_layers(timm.create_model(name, **kwargs), SIZE, ["*"], []).left == []


def test_structure_is_not_removed_from_unknown_blocks() -> None:
    prune = TransformerPrune(TransformerPrune.Config(pruned_ratio=0.5))
    with pytest.raises(InputError, match=r"no attention .* and no MLP .* leave TransformerPrune out"):
        prune.select(WithoutLayers(), Context(recipe=Recipe(), input_size=SIZE))


def test_an_attention_without_a_view_is_left_with_the_reason() -> None:
    hiera = {"img_size": 32, "embed_dim": 24, "num_heads": 1, "stages": (1, 1), "q_pool": 1, "num_classes": 5}
    model = timm.create_model("hiera_tiny_224", patch_kernel=(7, 7), patch_stride=(4, 4), **hiera)
    plan = TransformerPrune(TransformerPrune.Config()).select(model, Context(recipe=Recipe(), input_size=SIZE))
    assert set(plan.done) == {"blocks.0.mlp", "blocks.1.mlp"}
    reasons = {layer.name: layer.reason for layer in plan.left}
    assert reasons == {f"blocks.{block}.attn": "no view of MaskUnitAttention yet" for block in (0, 1)}


def test_a_model_of_torch_blocks_is_compressed_as_a_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = TorchViT(), torch.randn(32, *SIZE)
    loader = DataLoader(TensorDataset(images, torch.arange(32) % 5), batch_size=16)
    recipe = {
        "Distillation": {},
        "Prune": {"pattern": "2:4"},
        "QuantAware": {"quantize_op_types": ["linear", "conv2d", "matmul"]},
        "TrainConfig": {"epochs": 1},
        "export": {"benchmark_batches": [1], "formats": ["onnx", "packed"]},
    }
    result = AutoCompression(
        model, config=recipe, train_dataloader=loader, eval_dataloader=loader, save_dir=tmp_path
    ).compress()
    report = json.loads((tmp_path / "report.json").read_text())
    assert result.status == "no_target" and report["artifacts"][0]["agreement_torch"] >= 99
    pruned, quantised = report["stages"]
    block = {f"encoder.layers.0.{name}" for name in ("self_attn.qkv", "self_attn.proj", "linear1", "linear2")}
    assert block <= set(pruned["layers_done"]) and block <= set(quantised["layers_done"])
    assert not any("self_attn" in layer["name"] for stage in report["stages"] for layer in stage["layers_left"])
    # The caller's module has its own attention still; the compressed one is rebuilt on such a module.
    assert type(model.encoder.layers[0].self_attn) is nn.MultiheadAttention
    rebuilt = act.load(tmp_path, TorchViT())
    weight = rebuilt.get_submodule("encoder.layers.1.self_attn.qkv").effective_weight()
    assert (weight.reshape(-1, 4).ne(0).sum(1) <= 2).all()
    with torch.no_grad():
        logits = rebuilt(images)
    session = onnxruntime.InferenceSession(str(tmp_path / "artifact" / "model.onnx"))
    found = session.run(None, {"images": images.numpy()})[0]
    assert (torch.from_numpy(found).argmax(1) == logits.argmax(1)).float().mean() >= 0.95
