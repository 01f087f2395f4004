"""Reordered channels of real model families: the same function, the same rebuild, the same distillation loss."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from test_strategies_contract import FAMILIES, SIZE, VIT, build, context, images
from test_structure import torchvision_vit
from torch import nn

from act.errors import InputError
from act.layers import compressed_layers
from act.models import logits
from act.rebuild import load_model_folder, save_model
from act.sparsity.channels import RESIDUAL, apply_order, find_groups, named_tensors, prove
from act.sparsity.masks import parse_pattern
from act.sparsity.reorder import permute_channels, reorderable, search_groups
from act.strategies.distillation import Distillation
from act.strategies.prune import Prune

# Further timm families of one width: pooling by attention, registers, rotary positions with a gated MLP.
MORE: dict[str, dict[str, Any]] = {
    "vit_base_patch16_siglip_224": VIT,
    "vit_small_patch14_reg4_dinov2": VIT,
    "eva02_tiny_patch14_224": VIT,
    "vit_base_patch16_clip_224": VIT,
    "flexivit_small": VIT,
}
ONE_WIDTH = [
    *MORE,
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    "cait_xxs24_224",
    "beit_base_patch16_224",
]


def family(name: str) -> nn.Module:
    if name in FAMILIES:
        return build(name)
    torch.manual_seed(0)
    own = name == "torchvision"
    model = torchvision_vit() if own else timm.create_model(name, num_classes=10, **MORE[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def products(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize("name", [*FAMILIES, *MORE, "torchvision"])
def test_any_order_of_a_proved_group_leaves_the_function(name: str) -> None:
    model = family(name)
    groups, reasons = reorderable(model, products(model), 2, SIZE)
    with torch.no_grad():
        before, exact = logits(model(images())), logits(copy.deepcopy(model).double()(images().double()))
        generator = torch.Generator().manual_seed(3)
        for group in groups:
            starts = range(0, group.size, group.block)
            order = torch.cat([start + torch.randperm(group.block, generator=generator) for start in starts])
            apply_order(named_tensors(model), group.segments, order)
        torch.testing.assert_close(logits(model(images())), before, rtol=1e-5, atol=1e-5)
        double = model.double()
        torch.testing.assert_close(logits(double(images().double())), exact, rtol=1e-10, atol=1e-10)
    assert {"hidden", "value"} <= {group.kind for group in groups} or name != "torchvision"
    assert (name in ONE_WIDTH) == (groups[-1].kind == RESIDUAL) == ("residual stream" not in reasons)


def test_a_group_that_misses_a_tensor_is_refused_with_a_reason() -> None:
    model = family("vit_tiny_patch16_224")
    groups, _ = find_groups(model)
    for index, group in enumerate(groups):
        for segment in group.segments:
            rest = tuple(other for other in group.segments if other != segment)
            damaged = [*groups[:index], dataclasses.replace(group, segments=rest), *groups[index + 1 :]]
            state = copy.deepcopy(model.state_dict())
            proved, failed = prove(model, damaged, torch.randn(2, *SIZE))
            assert list(failed) == [group.name], segment
            assert len(proved) == len(groups) - 1
            assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        if index == 1:  # a group of each kind inside a block, and the stream below
            groups = groups[-1:]
            break
    (stream,) = groups
    for segment in stream.segments:
        rest = tuple(other for other in stream.segments if other != segment)
        assert prove(model, [dataclasses.replace(stream, segments=rest)], torch.randn(2, *SIZE))[1], segment


@pytest.mark.parametrize(
    ("name", "criterion"),
    [
        ("vit_tiny_patch16_224", "magnitude"),
        ("swin_tiny_patch4_window7_224", "magnitude"),
        ("beit_base_patch16_224", "wanda"),
        ("vit_tiny_patch16_224", "sparsegpt"),
    ],
)
def test_the_strategy_keeps_more_and_is_rebuilt_bit_for_bit(name: str, criterion: str, tmp_path: Path) -> None:
    shares = {}
    gains: list[float] = []
    for permute in (False, True):
        model, ctx = family(name), context()
        ctx.log = lambda event, message="", **fields: gains.append(fields["efficacy"]) if event == "permute" else None
        strategy = Prune(Prune.Config(permute=permute, criterion=criterion))
        plan = strategy.select(model, ctx)
        strategy.prepare(model, ctx)
        strategy.finalize(model, ctx)
        assert all(invariant.holds for invariant in strategy.invariants(model))
        masked = [layer for _, layer in compressed_layers(model) if layer.weight_mask is not None]
        shares[permute] = sum(float(layer.effective_weight().detach().abs().sum()) for layer in masked)
        assert {"permute", "mask"} - {"permute" if not permute else ""} == {edit["op"] for edit in ctx.edits}
    if criterion == "magnitude":
        assert shares[True] > 1.005 * shares[False]
    assert len(gains) > 2 and gains[-1] > 3
    order = strategy.facts(ctx)["channel_order"]
    assert order["all"]["before"] < order["all"]["after"] <= 100
    efficacies = [order["layers"][layer]["efficacy"] for layer in order["layers"]] + [order["all"]["efficacy"]]
    assert efficacies == pytest.approx(gains, abs=0.05)
    assert name.startswith(("vit", "beit")) or any(left.name == "residual stream" for left in plan.left)
    source = {"name": name, "kwargs": FAMILIES[name], "num_classes": 10}
    save_model(tmp_path, model, source, ctx.edits)
    rebuilt = load_model_folder(tmp_path).eval()
    assert all(torch.equal(value, rebuilt.state_dict()[key]) for key, value in model.state_dict().items())
    assert torch.equal(logits(rebuilt(images())), logits(model.eval()(images())))


def permuted(model: nn.Module) -> tuple[nn.Module, Any]:
    """A dense copy with every group reordered, and the context that knows."""
    student, ctx = copy.deepcopy(model), context()
    layers = [name for name in products(model) if name.startswith("blocks")]
    groups, _ = reorderable(student, layers, 4, SIZE)
    edit = search_groups(student, groups, layers, {}, parse_pattern("2:4"), 0, lambda name, kept: None)
    ctx.edit(student, edit)
    return student, ctx


NODES = ["blocks.*", "blocks.0.attn.qkv", "blocks.1.mlp.fc1", "norm"]


def test_a_reordered_student_has_no_loss_against_its_own_dense_teacher() -> None:
    teacher = family("deit_tiny_distilled_patch16_224")
    student, ctx = permuted(teacher)
    assert not torch.equal(student.get_parameter("cls_token"), teacher.get_parameter("cls_token"))
    for loss in ("l2", "cosine"):
        strategy = Distillation(Distillation.Config(node=NODES, loss=loss, alpha=1.0, soft_weight=0.0))
        for known, limit in ((True, 1e-6), (False, None)):
            objective = strategy.objective(student, [teacher], ctx if known else context())
            terms = objective.losses(images(), None, student.train()(images()))
            objective.close()
            assert len(terms) == 5
            if limit is not None:
                assert max(float(term.detach()) for term in terms.values()) < limit
            else:  # what would happen if the teacher did not follow
                assert min(float(term.detach()) for term in terms.values()) > 1e-3


def test_a_teacher_that_cannot_follow_is_said_aloud() -> None:
    student, ctx = permuted(family("vit_tiny_patch16_224"))
    lines: list[str] = []
    ctx.log = lambda event, message="", **fields: lines.append(f"{event}: {message}")
    deeper = timm.create_model("vit_tiny_patch16_224", num_classes=10, **{**VIT, "depth": 3})
    Distillation(Distillation.Config(node="blocks.1")).objective(student, [deeper], ctx).close()
    assert len(lines) == 1 and lines[0].startswith("warning: Distillation") and "relation" in lines[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"order": "0 1 1 2"}, "no permutation"), ({"segments": [["nowhere.weight", 0, 0]]}, "no tensor nowhere.weight")],
)
def test_a_damaged_edit_is_one_line(change: dict[str, Any], message: str) -> None:
    group = {"name": "blocks.0.mlp", "order": "1 0 3 2", "segments": [["blocks.0.mlp.fc1.bias", 0, 0]]} | change
    with pytest.raises(InputError, match=message):
        permute_channels(family("vit_tiny_patch16_224"), [group])
