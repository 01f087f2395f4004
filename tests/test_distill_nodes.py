"""Which modules Distillation compares: found by itself, by globs, and what wrong names get."""

from __future__ import annotations

from typing import Any

import pytest
import timm
from distill_support import context, losses, make, strategy
from torch import nn

from act.context import Context
from act.distill.capture import all_blocks, expand_nodes, last_block
from act.errors import InputError
from act.recipe.schema import Recipe


@pytest.mark.parametrize(
    ("name", "kwargs", "node"),
    [
        ("vit_tiny_patch16_224", {}, "blocks.11"),
        ("swin_tiny_patch4_window7_224", {}, "layers.3"),
        ("convnext_atto", {}, "stages.3"),
        ("resnet18", {}, "layer4"),
    ],
)
def test_auto_finds_the_blocks(name: str, kwargs: dict[str, Any], node: str) -> None:
    model = timm.create_model(name, **kwargs)
    assert last_block(model) == node
    stem, blocks = node.rstrip("0123456789"), all_blocks(model)
    assert blocks[-1] == node and len(set(blocks)) == len(blocks) == (12 if "vit" in name else 4)
    assert all(block.startswith(stem) for block in blocks)
    del model.feature_info
    assert last_block(model).startswith(node)


def test_auto_without_feature_info() -> None:
    model = nn.Sequential()
    model.add_module("stem", nn.Linear(4, 4))
    model.add_module("layers", nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(3)))
    assert last_block(model) == "layers.2"
    with pytest.raises(InputError, match="auto finds no list"):
        last_block(nn.Sequential(nn.Linear(4, 4)))


@pytest.mark.parametrize("names", [["layer_0", "layer_1", "layer_2"], ["first", "second", "third"]])
def test_auto_finds_blocks_with_names(names: list[str]) -> None:
    model = nn.Sequential()
    model.add_module("layers", nn.Sequential(*[nn.Sequential(nn.Linear(4, 4)) for _ in names]))
    model.layers._modules = dict(zip(names, model.layers.children(), strict=True))
    assert last_block(model) == f"layers.{names[-1]}"
    assert all_blocks(model) == [f"layers.{name}" for name in names]


def test_channels_first_and_channels_last_features() -> None:
    ctx = Context(recipe=Recipe(), input_size=(3, 64, 64))
    swin = {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)}
    for name, node, kwargs, width in (
        ("swin_tiny_patch4_window7_224", "layers.1", swin, 48),
        ("convnext_atto", "stages.3", {"dims": (8, 8, 16, 24), "depths": (1, 1, 1, 1)}, 24),
    ):
        student = timm.create_model(name, num_classes=5, **kwargs)
        wider = dict(kwargs, **({"embed_dim": 48} if "embed_dim" in kwargs else {"dims": (8, 8, 16, 32)}))
        teacher = timm.create_model(name, num_classes=5, **wider)
        objective = strategy(node=node, loss="cosine").objective(student, [teacher], ctx)
        assert objective.parameters()[0].shape[1] == width


def test_auto_for_attention_is_the_last_qkv() -> None:
    assert "feature.blocks.1.attn.qkv" in losses(make(seed=1), [make()], loss="attention")
    with pytest.raises(InputError, match="no joint qkv"):
        expand = strategy(loss="attention").select
        expand(timm.create_model("resnet10t"), context())


def test_globs_and_wrong_names() -> None:
    model = make()
    assert expand_nodes(model, ["blocks.*.mlp", "head"]) == [["blocks.0.mlp", "blocks.1.mlp"], ["head"]]
    with pytest.raises(InputError) as caught:
        expand_nodes(model, ["block.1", "nowhere"])
    assert len(caught.value.problems) == 2
    assert "near: blocks.1" in caught.value.problems[0]
    assert "vitcompress nodes MODEL" in caught.value.problems[0]


def test_select_lists_the_nodes() -> None:
    ctx = Context(recipe=Recipe(), input_size=(3, 32, 32))
    assert strategy(node=["blocks.*", "head"]).select(make(), ctx).done == ["blocks.0", "blocks.1", "head"]
