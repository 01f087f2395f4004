"""DepthPrune: which blocks can go, which do, and that they are gone from model, files and distillation."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
import torch
from export_support import SIZE, VIT, base_model, images
from test_token_merge import Data, context, strategy
from torch import nn

from act.analysis import analyze
from act.depth.find import removable_blocks
from act.depth.remove import Removed, removed_blocks, without
from act.depth.score import block_distances, least_needed
from act.distill.capture import all_blocks
from act.errors import InputError
from act.export.onnx import export_onnx
from act.run.baseline import count_macs, count_params
from act.strategies.base import find_strategy


def vit(depth: int = 4, idle: tuple[int, ...] = ()) -> nn.Module:
    """A tiny ViT whose blocks `idle` add next to nothing."""
    model = base_model(**{**VIT, "depth": depth})
    with torch.no_grad():
        for index in idle:
            block = model.get_submodule(f"blocks.{index}")
            for layer in (block.attn.proj, block.mlp.fc2):  # type: ignore[union-attr]
                layer.weight *= 1e-3 * (1 + index)  # type: ignore[union-attr, operator]
                layer.bias *= 1e-3 * (1 + index)  # type: ignore[union-attr, operator]
    return model


@pytest.mark.parametrize("criterion", ["output", "cosine"])
def test_the_blocks_that_do_nothing_go(criterion: str) -> None:
    model = vit(idle=(1, 2))
    whole = deepcopy(model)
    pruner, ctx = strategy("DepthPrune", blocks=2, criterion=criterion), context()
    plan = pruner.select(model, ctx)
    pruner.prepare(model, ctx)
    assert ctx.edits == [{"op": "remove_blocks", "layers": ["blocks.1", "blocks.2"]}]
    settled = pruner.settled(model, plan)
    assert settled.done == ["blocks.1", "blocks.2"] and [left.name for left in settled.left] == ["blocks.0", "blocks.3"]
    assert all(invariant.holds for invariant in pruner.invariants(model))
    with torch.no_grad():
        torch.testing.assert_close(model(images()), whole(images()), atol=0.05, rtol=0)
    block = count_params(whole.get_submodule("blocks.1"))
    assert count_params(whole) - count_params(model) == 2 * block
    assert count_macs(model, SIZE) < 0.6 * count_macs(whole, SIZE)
    assert analyze(model, SIZE).blocks == ["blocks.0", "blocks.3"]


def test_divergence_is_the_formula_and_the_model_stays() -> None:
    model, batches = vit(), Data().calibration(8, 8)
    before = deepcopy(model.state_dict())
    pixels = [batch.images for batch in batches]
    names = [f"blocks.{index}" for index in range(4)]
    found = least_needed(model, names, pixels, 2, lambda line: None)
    with torch.no_grad():
        p = model(pixels[0]).double().softmax(-1)
        with without(model, found):
            q = model(pixels[0]).double().softmax(-1)
    assert list(found.values())[-1] == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)
    assert not removed_blocks(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # The first choice is the best of all: no other block diverges less.
    with torch.no_grad():
        for name in names:
            with without(model, [name]):
                q = model(pixels[0]).double().softmax(-1)
            assert float((p * (p / q).log()).sum(-1).mean()) >= next(iter(found.values())) - 1e-9


def test_distance_is_that_of_input_and_output() -> None:
    model, pixels = vit(), images(4)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    model.get_submodule("blocks.2").register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    found = block_distances(model, ["blocks.2"], [pixels])["blocks.2"]
    given, output = (tensor.double() for tensor in seen[0])
    cosines = (given * output).sum(-1) / (given.norm(dim=-1) * output.norm(dim=-1))
    assert found == pytest.approx(float(1 - cosines.mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "kwargs", "blocks"),
    [
        ("vit_tiny_patch16_224", VIT, ["blocks.0", "blocks.1"]),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 1), "num_heads": (2, 4)},
            ["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"],
        ),
        ("convnext_atto", {"depths": (1, 2, 1, 1), "dims": (16, 16, 32, 64)},
         ["stages.0.blocks.0", "stages.1.blocks.0", "stages.1.blocks.1", "stages.2.blocks.0", "stages.3.blocks.0"]),
        ("cait_xxs24_224", {**VIT, "depth": 2, "depth_token_only": 1}, ["blocks.0", "blocks.1"]),
    ],
)  # fmt: skip
def test_blocks_are_found_by_structure(name: str, kwargs: dict[str, Any], blocks: list[str]) -> None:
    plan = removable_blocks(timm.create_model(name, **kwargs), SIZE, ["*"], [])
    assert plan.done == blocks
    if name.startswith("cait"):
        assert any(left.name == "blocks_token_only.0" and "shape of its input" in left.reason for left in plan.left)


def test_file_is_shorter(tmp_path: Path) -> None:
    model = vit()
    lengths = []
    for names in ([], ["blocks.1", "blocks.3"]):
        if names:
            strategy("DepthPrune", criterion="names", names=names).prepare(model, context())
        export_onnx(model, tmp_path / "model.onnx", SIZE)
        graph = onnx.load(str(tmp_path / "model.onnx")).graph
        lengths.append(sum(node.op_type == "Softmax" for node in graph.node))
        present = {tensor.name.split(".attn")[0] for tensor in graph.initializer if ".attn" in tensor.name}
    assert lengths == [4, 2] and present == {"blocks.0", "blocks.2"}


def test_distillation_goes_on_with_every_depth() -> None:
    student, teacher = vit(), vit()
    strategy("DepthPrune", criterion="names", names=["blocks.1", "blocks.3"]).prepare(student, context())
    student.feature_info = None  # type: ignore[assignment]
    assert all_blocks(student) == [f"blocks.{index}" for index in range(4)]
    objective = strategy("Distillation").objective(student, [teacher], context())
    terms = objective.losses(images(), None, student(images()))
    objective.close()
    assert {f"feature.blocks.{index}" for index in range(4)} < set(terms)
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in student.blocks.parameters())  # type: ignore[union-attr]


def test_share_and_refusals() -> None:
    pruner, model = strategy("DepthPrune", blocks=0.5), vit()
    pruner.prepare(model, context())
    assert len(removed_blocks(model)) == 2
    model.get_submodule("blocks").add_module("0", Removed())
    assert not all(invariant.holds for invariant in pruner.invariants(model))
    with pytest.raises(InputError, match="4 of the 4 that can go"):
        strategy("DepthPrune", blocks=4).select(vit(), context())
    with pytest.raises(InputError, match=r"blocks\.9: no such block; allowed: blocks\.0"):
        strategy("DepthPrune", criterion="names", names=["blocks.9"]).select(vit(), context())
    with pytest.raises(InputError, match="excluded by"):
        strategy("DepthPrune", criterion="names", names=["blocks.1"], exclude=["blocks.1"]).select(vit(), context())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"blocks": 0}, "blocks: 0"),
        ({"blocks": 1.5}, "blocks: 1.5"),
        ({"criterion": "luck"}, "criterion: 'luck'"),
        ({"criterion": "names"}, "names: goes with"),
        ({"names": ["blocks.1"]}, "names: goes with"),
        ({"images": 0}, "images: 0"),
    ],
)
def test_impossible_values(fields: dict[str, Any], message: str) -> None:
    cls = find_strategy("DepthPrune")
    assert any(problem.startswith(message) for problem in cls.problems(cls.Config(**fields)))
