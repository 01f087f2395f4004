"""Structured pruning of a model as a whole: budgets, kinds of cost, what the statistics say."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from act.analysis import analyze
from act.context import Context
from act.data.batch import Batch
from act.errors import InputError
from act.models import logits
from act.recipe.schema import Recipe
from act.strategies.base import load_strategies
from act.structure.axes import HEADS, HIDDEN, Q, V
from act.structure.cost import full_size, mac_rates, param_rates
from act.structure.curves import OutputLoss
from act.structure.latency import LatencyTable, latency_table, timed_sizes
from act.structure.planner import DIMS, Space
from act.structure.reducer import Reducer, Size
from act.structure.shrink import set_tensors, shrink_edit
from act.structure.statistics import gather
from act.structure.units import AttentionUnits, find_units

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
SIZE = (3, 32, 32)


class Data:
    def calibration(self, images: int, batch_size: int) -> list[Batch]:
        pixels = torch.randn(16, *SIZE, generator=torch.Generator().manual_seed(1))
        return [Batch(pixels, None)]


def build(name: str = "vit_tiny_patch16_224", **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=10, **(kwargs or VIT))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def context() -> Context:
    return Context(Recipe(), SIZE, Data())  # type: ignore[arg-type]


@pytest.mark.parametrize("of", ["macs", "params"])
@pytest.mark.parametrize("settings", [
    {"allocation": "measured"},
    {"allocation": "uniform"},
    {"allocation": "global", "criterion": "taylor"},
    {"allocation": "global", "criterion": "magnitude"},
    {"allocation": "measured", "criterion": "activation", "rounds": 2},
])  # fmt: skip
def test_the_cost_falls_by_what_was_asked(of: str, settings: dict[str, Any]) -> None:
    model, ctx = build(), context()
    cls = load_strategies()["TransformerPrune"]
    before = {"macs": analyze(model, SIZE).macs, "params": sum(p.numel() for p in model.parameters())}[of]
    cls(cls.Config(pruned_ratio=0.4, of=of, align=4, **settings)).prepare(model, ctx)
    after = {"macs": analyze(model, SIZE).macs, "params": sum(p.numel() for p in model.parameters())}[of]
    assert 0.4 <= 1 - after / before < 0.5
    for group in find_units(model).groups:
        sizes = full_size(group)
        assert all(size % 4 == 0 for size in (sizes if len(sizes) == 1 else sizes[1:]))


@pytest.mark.parametrize("rates", [mac_rates, param_rates])
def test_costs_are_exact(rates: Any) -> None:
    model = build()
    found = find_units(model)
    costs, total = rates(model, found, SIZE) if rates is mac_rates else rates(model, found)
    sizes = {g.name: (2, 8, 12) if isinstance(g, AttentionUnits) else (100,) for g in found.groups}
    small = deepcopy(model)
    ctx = context()
    ctx.edit(small, shrink_edit(sizes))
    predicted = total + sum(costs[g.name].cost(sizes[g.name]) - costs[g.name].cost(full_size(g)) for g in found.groups)
    real = analyze(small, SIZE).macs if rates is mac_rates else sum(p.numel() for p in small.parameters())
    assert predicted == pytest.approx(real)


@pytest.mark.parametrize("criterion", ["obs", "taylor", "magnitude"])
def test_a_stand_in_computes_what_the_cut_model_does(criterion: str) -> None:
    model = build()
    found = find_units(model)
    images = Data().calibration(1, 1)[0].images
    stats = gather(model, found.groups, [images], criterion == "taylor")
    reducer = Reducer(model, found, stats, criterion)
    cuts: dict[str, list[Size]] = {"blocks.0.attn": [(2, 16, 16), (3, 8, 16), (3, 16, 8)], "blocks.1.mlp": [(96,)]}
    for name, sizes in cuts.items():
        for size in sizes:
            whole, cut = deepcopy(model), deepcopy(model)
            set_tensors(whole, reducer.stand_in(name, size))
            context().edit(cut, shrink_edit({name: size}))
            set_tensors(cut, reducer.tensors({name: size}))
            with torch.no_grad():
                torch.testing.assert_close(logits(cut(images)), logits(whole(images)), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_skipping_unchanged_blocks_changes_nothing(family: str) -> None:
    swin = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
    model = build(family, **(VIT if family.startswith("vit") else swin))
    groups = find_units(model).groups
    images = Data().calibration(1, 1)[0].images
    loss = OutputLoss(model, [group.reader for group in groups], images)
    group = groups[-1]
    changed = {f"{group.reader}.weight": torch.zeros_like(model.get_submodule(group.reader).weight)}  # type: ignore[arg-type]
    quick = loss.of(group.name, changed)
    twin = deepcopy(model)
    set_tensors(twin, changed)
    with torch.no_grad():
        own, target = (torch.log_softmax(logits(m(images)), 1) for m in (twin, model))
    slow = float(torch.nn.functional.kl_div(own, target, log_target=True, reduction="batchmean"))
    assert quick == pytest.approx(slow, rel=1e-4) and slow > 0
    assert loss.of(group.name, {}) == pytest.approx(0.0, abs=1e-6)


def test_saliency_is_the_squared_derivative_of_a_gate() -> None:
    """Against gates multiplied in by hand, for every unit of one MLP and every head of one attention."""
    model = build().double()
    found = find_units(model)
    images = Data().calibration(1, 1)[0].images[:4].double()
    stats = gather(model, found.groups, [images], True, seed=3)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        drawn = torch.multinomial(logits(model(images)).softmax(1), 1, generator=draw).squeeze(1)
    expected = {HIDDEN: torch.zeros(192).double(), HEADS: torch.zeros(3).double(), V: torch.zeros(48).double()}
    for image, label in zip(images, drawn, strict=True):
        for reader, segment in (("blocks.0.mlp.fc2", HIDDEN), ("blocks.1.attn.proj", V)):
            gate = torch.ones(192 if segment == HIDDEN else 48, dtype=torch.float64, requires_grad=True)
            handle = model.get_submodule(reader).register_forward_pre_hook(lambda _, args, gate=gate: (args[0] * gate,))
            loss = torch.nn.functional.cross_entropy(logits(model(image[None])), label[None])
            (slope,) = torch.autograd.grad(loss, gate)
            handle.remove()
            expected[segment] += slope.square()
            if segment == V:
                expected[HEADS] += slope.reshape(3, 16).sum(1).square()
    torch.testing.assert_close(stats["blocks.0.mlp"].saliency[HIDDEN], expected[HIDDEN])
    torch.testing.assert_close(stats["blocks.1.attn"].saliency[V], expected[V])
    torch.testing.assert_close(stats["blocks.1.attn"].saliency[HEADS], expected[HEADS])
    assert stats["blocks.0.attn"].saliency[Q].shape == (48,)


def test_latency_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("act.structure.latency.SECONDS", 0.2)
    said: list[str] = []
    for _ in range(2):
        ctx = context()
        ctx.log = lambda event, message="", **fields: said.append(message)
        prune_by_latency(build(), ctx)
    assert any(line.startswith("latency table kept") for line in said)
    assert any(line.startswith("latency table of this machine read") for line in said)
    (file,) = tmp_path.rglob("*.json")
    assert all(ms > 0 for ms in json.loads(file.read_text()).values())


def test_measured_latency_is_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # How long so small a model takes is chance; here it takes as long as its operations say.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        "act.structure.latency.time_models",
        lambda models, ctx: {name: analyze(model, SIZE).macs / 1e6 for name, model in models.items()},
    )
    model = build()
    before = analyze(model, SIZE).macs
    prune_by_latency(model, context())
    assert analyze(model, SIZE).macs <= 0.8 * before * 1.001
    assert all(group.hidden < 192 for group in find_units(model).groups if not isinstance(group, AttentionUnits))


def prune_by_latency(model: nn.Module, ctx: Context) -> None:
    cls = load_strategies()["TransformerPrune"]
    cls(cls.Config(pruned_ratio=0.2, of="latency", units=["mlp"], align=32)).prepare(model, ctx)


def test_times_of_q_k_and_v_together_are_used_where_all_have_one_size() -> None:
    groups = find_units(build()).groups
    attention = next(group for group in groups if isinstance(group, AttentionUnits))
    curves = {"heads": {3: 9.0, 2: 7.0}, "qk": {16: 9.0, 8: 10.0}, "v": {16: 9.0, 8: 11.0}, DIMS: {16: 9.0, 8: 6.0}}
    table = LatencyTable(9.0, {attention.name: curves}, groups)
    assert table.cost(attention.name, (3, 8, 8)) == -3.0
    assert table.cost(attention.name, (3, 8, 16)) == 1.0
    assert table.cost(attention.name, (2, 8, 8)) == pytest.approx(-2.0 - 3.0 * 2 / 3)
    assert timed_sizes(Space(align=4), attention)[DIMS] == [16, 12, 8, 4]
    assert DIMS not in timed_sizes(Space(units=["heads", "v"]), attention)


@pytest.mark.parametrize("idle", [False, True])
def test_the_width_of_the_stream_is_chosen_by_what_it_costs_with_all_else(idle: bool) -> None:
    model: Any = build()
    ctx, ratio = context(), 0.2
    said: list[str] = []
    with torch.no_grad():
        # Half of the channels say nothing, so that narrowing is nearly free; or all say something.
        for parameter in (model.cls_token, model.pos_embed):
            parameter[..., 24:] *= not idle
        for name, parameter in model.named_parameters():
            if name.endswith(("proj.weight", "fc2.weight", "proj.bias", "fc2.bias")):
                parameter[24:] *= not idle
    ctx.log = lambda event, message="", **fields: said.append(message)
    before = analyze(model, SIZE).macs
    cls = load_strategies()["TransformerPrune"]
    cls(cls.Config(pruned_ratio=ratio, width=None, align=4)).prepare(model, ctx)
    assert analyze(model, SIZE).macs <= (1 - ratio) * before * 1.001
    assert (model.embed_dim < 48) == idle
    assert sum(line.startswith("width ") for line in said) == 4
    assert sum(line.endswith("(taken)") for line in said) == 1


def test_a_latency_table_is_extended_by_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    timed: list[list[str]] = []

    def stopwatch(models: dict[str, Any], ctx: Context) -> dict[str, float]:
        timed.append(list(models))
        return {name: 4.0 + 0.01 * len(timed) * model.embed_dim for name, model in models.items()}

    monkeypatch.setattr("act.structure.latency.time_models", stopwatch)
    model, ctx = build(), context()
    found = find_units(model)
    first = latency_table(model, found, Space(["mlp"], 32), ctx)
    second = latency_table(model, found, Space(["mlp"], 32), ctx, [24])
    third = latency_table(model, found, Space(["mlp"], 32), ctx, [24])
    assert timed[1] == ["full", "width 24"]
    assert len(timed) == 2
    assert first.total == second.total == third.total
    slower = (4 + 0.02 * 48) / (4 + 0.01 * 48)  # the pace of the second time to that of the first
    assert second.widths == third.widths == {24: pytest.approx((4 + 0.02 * 24) / slower)}


def test_without_a_ratio_the_target_says_how_much() -> None:
    model, ctx = build(), context()
    ctx.recipe.target.macs = analyze(model, SIZE).macs * 7 // 10
    cls = load_strategies()["TransformerPrune"]
    cls(cls.Config(pruned_ratio=None, align=4)).prepare(model, ctx)
    assert analyze(model, SIZE).macs <= ctx.recipe.target.macs
    with pytest.raises(InputError, match=r"target\.latency_ms"):
        cls(cls.Config(pruned_ratio=None, of="params")).prepare(build(), context())


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"pruned_ratio": 1.0}, "pruned_ratio"),
        ({"of": "time"}, "of"),
        ({"criterion": "snip"}, "criterion"),
        ({"allocation": "global"}, "allocation"),
        ({"units": ["heads", "blocks"]}, "units"),
        ({"units": []}, "units"),
        ({"align": 0}, "align"),
        ({"damping": 0.0}, "damping"),
    ],
)
def test_bad_settings(settings: dict[str, Any], problem: str) -> None:
    cls = load_strategies()["TransformerPrune"]
    assert any(line.startswith(problem) for line in cls.problems(cls.Config(**settings)))


def test_width_counts_towards_the_ratio() -> None:
    model, ctx = build(), context()
    before = analyze(model, SIZE).macs
    cls = load_strategies()["TransformerPrune"]
    cls(cls.Config(pruned_ratio=0.5, width=0.67, align=4, allocation="uniform")).prepare(model, ctx)
    assert 0.5 <= 1 - analyze(model, SIZE).macs / before < 0.6
    assert model.embed_dim == 32 and [edit["op"] for edit in ctx.edits] == ["narrow", "shrink"]
    with pytest.raises(InputError, match="width"):
        swin = build(
            "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=16, depths=(1, 1), num_heads=(2, 4)
        )
        cls(cls.Config(width=0.5)).prepare(swin, context())


def test_a_ratio_out_of_reach_is_said() -> None:
    model, ctx = build(), context()
    said: list[str] = []
    ctx.log = lambda event, message="", **fields: said.append(message) if event == "warning" else None
    cls = load_strategies()["TransformerPrune"]
    cls(cls.Config(pruned_ratio=0.9, units=["qk"], align=4)).prepare(model, ctx)
    assert len(said) == 1 and "units qk" in said[0]
