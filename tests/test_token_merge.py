"""TokenMerge: the matching against a slow float64 one, schedules, models, distillation, quantisation and export."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from export_support import SIZE, VIT, base_model, images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from act.analysis import analyze
from act.backends.openvino import OpenVino
from act.context import Context
from act.data.batch import Batch
from act.errors import ActError, InputError
from act.export.contrib import export_contrib
from act.export.onnx import export_onnx
from act.export.openvino import export_openvino
from act.quant.matmul import QuantizedAttention
from act.recipe.schema import Recipe
from act.run.baseline import count_macs
from act.strategies.base import find_strategy
from act.tokens.blocks import MergingAttention, merging_blocks
from act.tokens.find import mergeable
from act.tokens.matching import drop_tokens, merge_tokens
from act.tokens.schedule import spread, within_reach


class Data:
    labelled = False

    def calibration(self, count: int, batch_size: int) -> list[Batch]:
        return [Batch(images(min(count, 8), seed=1), None)]


def context(logged: list[str] | None = None) -> Context:
    lines = [] if logged is None else logged
    return Context(Recipe(), SIZE, Data(), log=lambda event, message="", **fields: lines.append(message))  # type: ignore[arg-type]


def strategy(name: str = "TokenMerge", **fields: Any) -> Any:
    cls = find_strategy(name)
    config = cls.Config(**fields)
    assert cls.problems(config) == []
    return cls(config)


def vit(depth: int = 3, **kwargs: Any) -> nn.Module:
    return base_model(**{**VIT, "depth": depth, **kwargs})


def merged(model: nn.Module, **fields: Any) -> nn.Module:
    strategy(**fields).prepare(model, context())
    return model.eval()


def slow_merge(x: Tensor, sizes: Tensor, keys: Tensor, count: int, prefix: int) -> tuple[Tensor, Tensor]:
    """One image [N, C], token by token, in float64: greedy over the pairs with the largest cosine."""
    metric = keys.double().mean(0)
    first, second = list(range(prefix, len(x), 2)), list(range(prefix + 1, len(x), 2))

    def cosine(i: int, j: int) -> float:
        return float(metric[i] @ metric[j] / math.sqrt(float(metric[i] @ metric[i]) * float(metric[j] @ metric[j])))

    partner = {i: max(second, key=lambda j: cosine(i, j)) for i in first}
    gone = sorted(first, key=lambda i: cosine(i, partner[i]), reverse=True)[:count]
    tokens, weights = [], []
    for n in [*range(prefix), *(i for i in first if i not in gone), *second]:
        group = [n, *(i for i in gone if partner[i] == n)]
        weights.append(sum(float(sizes[i]) for i in group))
        tokens.append(sum(x[i].double() * float(sizes[i]) for i in group) / weights[-1])
    return torch.stack(tokens), torch.tensor(weights, dtype=torch.float64)[:, None]


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(2, 17), prefix=st.integers(0, 2), seed=st.integers(0, 1000), data=st.data())
def test_matching_is_the_slow_one(tokens: int, prefix: int, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, tokens // 2))
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(2, prefix + tokens, 5, generator=random)
    keys = torch.randn(2, 3, prefix + tokens, 4, generator=random)
    sizes = torch.randint(1, 5, (2, prefix + tokens, 1), generator=random).float()
    found, weights = merge_tokens(x, sizes, keys, count, prefix)
    for image in range(2):
        wanted, wanted_weights = slow_merge(x[image], sizes[image], keys[image], count, prefix)
        torch.testing.assert_close(found[image].double(), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(weights[image].double(), wanted_weights)
    torch.testing.assert_close((found * weights).sum(1), (x * sizes).sum(1), rtol=1e-4, atol=1e-5)


def test_prune_drops_what_the_class_token_attends_to_least() -> None:
    random = torch.Generator().manual_seed(0)
    x, query, keys = (torch.randn(2, *shape, generator=random) for shape in ((9, 5), (3, 9, 4), (3, 9, 4)))
    found = drop_tokens(x, query, keys, 3, 1)
    attended = (query[:, :, :1].double() @ keys.double().transpose(-1, -2) / 2).softmax(-1).mean((1, 2))
    for image in range(2):
        kept = sorted(range(1, 9), key=lambda n: float(attended[image, n]), reverse=True)[:5]
        assert torch.equal(found[image], x[image, [0, *sorted(kept)]])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(1, 24), st.sampled_from(["constant", "decreasing"]), st.integers(0, 2))
def test_schedules(total: int, blocks: int, schedule: str, prefix: int) -> None:
    shares = spread(total, blocks, schedule)
    assert sum(shares) == total and len(shares) == blocks and min(shares) >= 0
    if schedule == "decreasing" and blocks > 1:
        assert shares[-1] == 0 and all(b - a <= 1 for a, b in itertools.pairwise(shares))
    else:
        assert max(shares) - min(shares) <= 1
    tokens = 50 + prefix
    for wanted, count in zip(shares, within_reach(shares, tokens, prefix), strict=True):
        assert count == min(wanted, (tokens - prefix) // 2)
        tokens -= count
    assert spread(8 * 11, 11, "constant") == [8] * 11


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"])
def test_nothing_merged_is_the_original(name: str) -> None:
    before, model = (base_model(name, **{**VIT, "depth": 3}) for _ in range(2))
    edit = {"op": "merge_tokens", "layers": {f"blocks.{i}": {"tokens": 17, "count": 0} for i in range(3)}}
    context().edit(model, {**edit, "prefix": 1, "mode": "merge", "proportional": True})
    assert isinstance(model.get_submodule("blocks.2.attn"), MergingAttention)
    with torch.no_grad():
        torch.testing.assert_close(model(images()), before(images()), rtol=0, atol=1e-6)


def test_a_merged_token_counts_as_the_tokens_it_stands_for() -> None:
    """Equal tokens merged, attention proportional to the sizes: what the class token gets stays the same."""
    model = vit(depth=2)
    block = model.get_submodule("blocks.1")
    x = torch.randn(1, 6, 48, generator=torch.Generator().manual_seed(0))
    every = torch.cat([x, x[:, 3:4], x[:, 3:4], x[:, 5:6]], 1)
    wanted = block(every)[:, :6]
    context().edit(
        model,
        {
            "op": "merge_tokens",
            "layers": {"blocks.1": {"tokens": 6, "count": 0}},
            "prefix": 1,
            "mode": "merge",
            "proportional": True,
        },
    )
    x._vitcompress_sizes = torch.tensor([1.0, 1, 1, 3, 1, 2])[None, :, None]  # type: ignore[attr-defined]
    torch.testing.assert_close(block(x), wanted, rtol=1e-5, atol=1e-5)
    block.token_merge.weighted = True
    with pytest.raises(ActError, match="their sizes are lost"):
        block(x.clone())


def test_tokens_macs_and_analysis_fall() -> None:
    dense, model = vit(), merged(vit(), tokens=4)
    seen: list[int] = []
    for block in model.blocks:  # type: ignore[union-attr]
        block.mlp.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    model(images(1))
    assert seen == [13, 9, 9]
    assert [merge.tokens for merge in merging_blocks(model).values()] == [17, 13, 9]
    assert count_macs(model, SIZE) < 0.85 * count_macs(dense, SIZE)
    found = analyze(model, SIZE)
    assert found.blocks == ["blocks.0", "blocks.1", "blocks.2"] and found.macs == count_macs(model, SIZE)
    kinds = [product.kind for product in found.products if product.block == "blocks.1"]
    assert kinds == ["qkv", "qk^T", "av", "proj", "merge", "merge", "fc1", "fc2"]


def test_plan_lists_blocks_left_and_keep_gives_the_share() -> None:
    plan = strategy(keep=0.5, exclude=["blocks.1"]).select(vit(depth=4), context())
    assert plan.done == ["blocks.0", "blocks.2"]
    assert [left.name for left in plan.left] == ["blocks.1", "blocks.3"]
    model = merged(vit(depth=4), keep=0.5, exclude=["blocks.1"])
    assert [merge.tokens for merge in merging_blocks(model).values()] == [17, 13, 13, 9]
    assert all(invariant.holds for invariant in strategy(keep=0.5).invariants(model))
    model.get_submodule("blocks.2").token_merge.count = 3  # type: ignore[union-attr]
    assert not all(invariant.holds for invariant in strategy(keep=0.5).invariants(model))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": -1}, "tokens: -1"),
        ({"keep": 1.5}, "keep: 1.5"),
        ({"schedule": "up"}, "schedule: 'up'"),
        ({"mode": "drop"}, "mode: 'drop'"),
    ],
)
def test_impossible_values(fields: dict[str, Any], message: str) -> None:
    cls = find_strategy("TokenMerge")
    assert any(problem.startswith(message) for problem in cls.problems(cls.Config(**fields)))


def test_what_merges_nothing_is_refused() -> None:
    for fields in ({"tokens": 0}, {"keep": 1.0}, {"include": ["stages.*"]}):
        with pytest.raises(InputError, match="no block would merge"):
            strategy(**fields).select(vit(), context())


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("beit_base_patch16_224", VIT, "bias for each pair of positions"),
        ("vit_tiny_patch16_224", {**VIT, "global_pool": "map"}, None),
        ("vit_tiny_patch16_224", {**VIT, "block_fn": "parallel"}, "no blocks of norm1"),
        ("swinv2_cr_tiny_224", {"img_size": 32, "window_size": 4}, "num_prefix_tokens"),
    ],
)
def test_which_models_can(name: str, kwargs: dict[str, Any], reason: str | None) -> None:
    if kwargs.get("block_fn") == "parallel":
        from timm.models.vision_transformer import ParallelScalingBlock

        kwargs = {**kwargs, "block_fn": ParallelScalingBlock}
    found = mergeable(timm.create_model(name, **kwargs), SIZE)
    assert (reason in found) if isinstance(found, str) and reason else not isinstance(found, str)


def test_beit_without_position_bias_merges() -> None:
    positions = {"use_rel_pos_bias": False, "use_abs_pos_emb": True}
    model = base_model("beit_base_patch16_224", **{**VIT, "depth": 3, **positions})
    before = model(images())
    after = merged(model, tokens=3)(images())
    assert after.shape == before.shape and not torch.equal(after, before)


@pytest.mark.parametrize("mode", ["merge", "prune"])
@pytest.mark.parametrize("attention", [False, True])
def test_onnx_file_is_the_model(mode: str, attention: bool, tmp_path: Path) -> None:
    model = merged(vit(), tokens=3, mode=mode)
    if attention:
        types = ["linear", "conv2d", "matmul"]
        strategy("QuantPost", quantize_op_types=types, equalize=False).prepare(model, context())
        assert isinstance(model.get_submodule("blocks.1.attn"), QuantizedAttention)
    export_onnx(model, tmp_path / "model.onnx", SIZE)
    for batch in (1, 5):
        found = _run(tmp_path / "model.onnx", images(batch))
        with torch.no_grad():
            wanted = model(images(batch)).numpy()
        # Codes that differ by one, and tokens that are merged otherwise because of it, leave most of it as it is.
        bound = 0.1 * float(np.abs(wanted).max()) if attention else 1e-4
        assert float(np.abs(found - wanted).max()) < bound


@pytest.mark.parametrize("quantized", [False, True])
def test_runtime_files_fuse_attention_and_cut_the_last_block(quantized: bool, tmp_path: Path) -> None:
    model = merged(vit(), tokens=3)
    if quantized:
        strategy("QuantPost", equalize=False).prepare(model, context())
    export_onnx(model, tmp_path / "model.onnx", SIZE)
    made = export_contrib(tmp_path / "model.onnx", tmp_path / "fused.onnx", "float")
    # Merging reads the keys apart, so the projection is no part of the fused operator.
    assert made["MultiHeadAttention"] == 3 and made["QAttention"] == 0
    assert made["products on read tokens only"] > 0
    found, wanted = (_run(tmp_path / name, images(3)) for name in ("fused.onnx", "model.onnx"))
    bound = 0.1 * float(np.abs(wanted).max()) if quantized else 1e-4
    assert float(np.abs(found - wanted).max()) < bound
    export_openvino(tmp_path / "model.onnx", tmp_path / "model.xml", "float")
    found = OpenVino().load(tmp_path / "model.xml", threads=1).run(images(3).numpy())
    assert float(np.abs(found - wanted).max()) < bound


def _run(path: Path, batch: Tensor) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": batch.numpy()})[0]


def test_auto_distillation_compares_the_class_token_and_says_so() -> None:
    lines: list[str] = []
    student, teacher = merged(vit(), tokens=3), vit()
    objective = strategy("Distillation").objective(student, [teacher], context(lines))
    terms = objective.losses(images(), None, student(images()))
    objective.close()
    assert set(terms) == {"soft", "feature.blocks.0", "feature.blocks.1", "feature.blocks.2"}
    assert any("class (prefix) tokens only, 1 of each: blocks.0, blocks.1, blocks.2" in line for line in lines)
    with pytest.raises(InputError, match="choose another node"):
        strategy("Distillation", node="blocks.1").objective(student, [teacher], context())


def test_auto_distillation_without_a_class_token_leaves_the_logits() -> None:
    lines: list[str] = []
    kwargs = {"class_token": False, "global_pool": "avg"}
    student = merged(vit(**kwargs), tokens=3)
    objective = strategy("Distillation").objective(student, [vit(**kwargs)], context(lines))
    assert set(objective.losses(images(), None, student(images()))) == {"soft"}
    objective.close()
    assert any("not at all, which leaves the logits" in line for line in lines)
