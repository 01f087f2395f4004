"""`vitcompress sensitivity`: every figure against the slow, obvious way; the model stays; the verb end to end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_strategies_contract import FAMILIES, SIZE, build, context
from torch import Tensor, nn

from act.cli.main import main
from act.data.bundle import DataBundle
from act.edits import apply_edit
from act.errors import InputError
from act.models import logits
from act.quant.config import QuantConfig
from act.quant.fake_quant import FakeQuantize
from act.quant.prepare import add_quantizers, prepare_quantized, set_ranges
from act.sensitivity.choose import FAMILIES as TREATMENTS
from act.sensitivity.choose import choose_treatments
from act.sensitivity.forwards import Forwards
from act.sensitivity.measure import Measured, Sensitivity, Step, measure_sensitivity
from act.sensitivity.picture import cells
from act.sensitivity.structure import Structure
from act.sensitivity.treatments import Quantization, Sparsity
from act.strategies.prune import PruneConfig
from act.structure.axes import HEADS, HIDDEN, K, Q, V
from act.structure.importance import unit_scores
from act.structure.shrink import set_tensors, shrink_edit, shrunk_tensors
from act.structure.statistics import GroupStatistics
from act.structure.units import AttentionUnits, find_units

# Without these a layer's quantisation does not depend on that of any other.
ALONE: dict[str, Any] = {"equalize": False, "shift": False, "bias_correction": False, "calibration": "minmax"}
DEFAULTS = QuantConfig(images=8)


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(count, *SIZE, generator=generator) for count in (4, 3)]


@cache
def measured(family: str) -> tuple[nn.Module, Measured]:
    """The model, and its sensitivities to treatments that leave the other layers alone."""
    model, ctx = build(family), context()
    treatments = [
        Sparsity(PruneConfig(align=4), ctx),
        Quantization(QuantConfig(images=8, **ALONE), ctx),
        Structure(0.25, SIZE),
    ]
    return model, measure_sensitivity(model, batches(), treatments)


def slow(model: nn.Module, treated: nn.Module) -> tuple[float, float, float]:
    """KL, relative error and agreement of two models, over all images at once in float64."""
    with torch.no_grad():
        before = torch.cat([logits(model(batch)) for batch in batches()]).double()
        after = torch.cat([logits(treated(batch)) for batch in batches()]).double()
    kl = F.kl_div(after.log_softmax(1), before.softmax(1), reduction="batchmean")
    same = (before.argmax(1) == after.argmax(1)).double().mean()
    return float(kl), float((after - before).norm() / before.norm()), 100 * float(same)


def check(cost: Sensitivity, model: nn.Module, treated: nn.Module) -> None:
    """`cost` is that of `treated`, up to the rounding of float32."""
    kl, error, agreement = slow(model, treated)
    assert cost.kl == pytest.approx(kl, rel=1e-3, abs=1e-9)
    assert cost.error == pytest.approx(error, abs=1e-5)
    assert cost.agreement == pytest.approx(agreement)


def of(found: Measured, treatment: str, kinds: tuple[str, ...] = ()) -> list[Sensitivity]:
    return [cost for cost in found.costs if cost.treatment == treatment and (not kinds or cost.kind in kinds)]


@pytest.mark.parametrize("family", FAMILIES)
def test_sparsity_costs_what_two_largest_of_four_cost(family: str) -> None:
    model, found = measured(family)
    costs = of(found, "2:4")
    for cost in (costs[0], costs[len(costs) // 2], costs[-1]):
        treated = deepcopy(model)
        weight: Tensor = treated.get_submodule(cost.layer).weight.data  # type: ignore[assignment]
        rows = weight.movedim(1, -1).reshape(-1, 4)
        kept = rows.abs().topk(2, dim=1).indices
        pruned = torch.zeros_like(rows).scatter_(1, kept, rows.gather(1, kept))
        weight.copy_(pruned.reshape(weight.movedim(1, -1).shape).movedim(-1, 1))
        check(cost, model, treated)


@pytest.mark.parametrize("family", FAMILIES)
def test_integers_cost_what_a_model_with_one_quantised_layer_loses(family: str) -> None:
    model, found = measured(family)
    costs = of(found, "int8")
    # Not all: in a tiny PVT some queries have one key to choose from.
    assert sum(cost.error > 1e-5 for cost in costs) > len(costs) / 3
    for cost in (costs[0], costs[len(costs) // 2], costs[-1]):
        treated = deepcopy(model)
        prepare_quantized(treated, QuantConfig(images=8, include=[cost.layer], **ALONE), context(), "fixed")
        check(cost, model, treated)


@pytest.mark.parametrize("name", ["blocks.0.attn.proj", "blocks.1.mlp.fc2"])
def test_default_settings_leave_all_other_layers_as_they_were(name: str) -> None:
    """Equalisation and bias correction change other layers, too; none of that may be part of a layer's cost."""
    model = build("vit_tiny_patch16_224")
    cost = next(
        c for c in measure_sensitivity(model, batches(), [Quantization(DEFAULTS, context())]).costs if c.layer == name
    )
    treated, ctx = deepcopy(model), context()
    names = add_quantizers(treated, DEFAULTS, ctx, "fixed")
    biases = {layer: treated.get_submodule(layer).bias.detach().clone() for layer in names}  # type: ignore[operator]
    set_ranges(treated, names, DEFAULTS, ctx)
    for layer in names:
        if layer != name:
            module = treated.get_submodule(layer)
            module.bias.data.copy_(biases[layer])  # type: ignore[union-attr]
            module.weight_quantizer = module.input_quantizer = None  # type: ignore[assignment]
    assert sum(isinstance(module, FakeQuantize) for module in treated.modules()) == 2
    check(cost, model, treated)


@pytest.mark.parametrize("family", FAMILIES)
def test_units_cost_what_a_model_without_them_loses(family: str) -> None:
    """The smallest heads and hidden units are really removed, through the edit that pruning uses."""
    model, found = measured(family)
    units = find_units(model)
    costs = of(found, "structure 25 %")
    assert costs
    for cost in costs:
        group = units.group(cost.layer)
        heads = isinstance(group, AttentionUnits)
        scores = unit_scores(model, group, GroupStatistics(), "magnitude")[HEADS if heads else HIDDEN]
        kept = scores.argsort()[max(1, round(0.25 * len(scores))) :].sort().values
        assert cost.detail == f"{len(scores) - len(kept)} of {len(scores)} {'heads' if heads else 'hidden units'}"
        maps = {HIDDEN: kept}
        size: tuple[int, ...] = (len(kept),)
        if isinstance(group, AttentionUnits):
            wide, narrow = (torch.cat([h * d + torch.arange(d) for h in kept]) for d in (group.qk_dim, group.v_dim))
            maps, size = {Q: wide, K: wide, V: narrow, HEADS: kept}, (len(kept), group.qk_dim, group.v_dim)
        treated = deepcopy(model)
        apply_edit(treated, shrink_edit({group.name: size}))
        set_tensors(treated, shrunk_tensors(model, units, {group.name: maps}))
        check(cost, model, treated)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_silent_and_the_model_stays(family: str) -> None:
    model, found = measured(family)
    fresh = build(family)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in fresh.named_modules()]
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in fresh.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())
    for treatment, left in found.left.items():
        listed = {layer for cost in of(found, treatment) for layer in cost.layers} | {layer.name for layer in left}
        assert {n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)} <= listed
        assert all(layer.reason for layer in left)


@pytest.mark.parametrize("others", [["linear"], []])
def test_attention_products_are_measured_where_the_recipe_quantises_them(others: list[str]) -> None:
    model = build("vit_tiny_patch16_224")
    config = QuantConfig(images=8, quantize_op_types=[*others, "matmul"], **ALONE)
    found = measure_sensitivity(model, batches(), [Quantization(config, context())])
    products = [cost for cost in found.costs if cost.kind == "attention"]
    assert [cost.layer for cost in products] == ["blocks.0.attn", "blocks.1.attn"]
    for cost in products:
        treated = deepcopy(model)
        alone = QuantConfig(images=8, quantize_op_types=["matmul"], **ALONE)
        prepare_quantized(treated, alone, context(), "fixed")
        for name in {"blocks.0.attn", "blocks.1.attn"} - {cost.layer}:
            treated.set_submodule(name, deepcopy(model.get_submodule(name)))
        check(cost, model, treated)


class Pyramid(nn.Module):
    """Reads what every block gives, so that no two blocks may be skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16)) for _ in range(3))
        self.head = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        x, seen = self.stem(images).flatten(2).transpose(1, 2), []
        for block in self.blocks:
            x = x + block(x)
            seen.append(x.mean(1))
        y: Tensor = self.head(torch.cat(seen, 1))
        return y


class Chain(Pyramid):
    """Only the last block's output goes on."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.head(x.mean(1).repeat(1, 3))
        return y


@pytest.mark.parametrize(("kind", "skips"), [(Pyramid, False), (Chain, True)])
def test_blocks_are_skipped_only_where_nothing_leads_around_them(kind: type[nn.Module], skips: bool) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    calls: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    forwards = Forwards(model, linears, batches())
    wanted = [logits(model(batch)) for batch in batches()]
    for name in linears:
        forwards.advance(forwards.start([name]))
        calls.clear()
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(wanted, forwards.outputs(), strict=True))
        assert ("blocks.1.0" in calls) == (not skips or name.startswith(("blocks.0", "blocks.1")))
        assert name in calls


def test_progress_counts_every_unit() -> None:
    steps: list[Step] = []
    model = build("vit_tiny_patch16_224")
    measure_sensitivity(model, batches(), [Structure(0.5, SIZE)], steps.append)
    assert [(step.done, step.units) for step in steps] == [(0, 0), *((i, 4) for i in range(1, 5))]
    assert steps[-1].seconds == 0 and all(step.seconds > 0 for step in steps[1:-1])


def test_no_images_and_outputs_that_are_not_finite_are_refused() -> None:
    model = build("vit_tiny_patch16_224")
    with pytest.raises(InputError, match=r"data\.train: no image"):
        measure_sensitivity(model, [], [Structure(0.5, SIZE)])
    nn.init.constant_(model.head.bias, float("nan"))  # type: ignore[union-attr,arg-type]
    with pytest.raises(InputError, match="not finite"):
        measure_sensitivity(model, batches(), [Structure(0.5, SIZE)])


def test_treatments_take_their_settings_from_the_recipe() -> None:
    ctx = context()
    names = [treatment.name for treatment in choose_treatments(ctx, TREATMENTS, 8, 0.25)]
    assert names == ["2:4", "int8", "int4 weights", "structure 25 %"]
    ctx.recipe.strategies["Prune"] = PruneConfig(pattern="1:4")
    ctx.recipe.strategies["QuantPost"] = QuantConfig(weight_bits=4, activation_bits=8)
    names = [treatment.name for treatment in choose_treatments(ctx, TREATMENTS, 8, 0.125)]
    assert names == ["1:4", "w4a8", "int4 weights", "structure 12.5 %"]


def test_the_verb_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")

    def unread(*_: object) -> Iterator[object]:
        raise AssertionError("validation images are for measuring only")

    monkeypatch.setattr(DataBundle, "val", unread)
    out, picture = tmp_path / "new" / "costs.json", tmp_path / "costs.svg"
    argv = ["sensitivity", "quickstart", "--images", "8", "--json", str(out), "--picture", str(picture), "--top", "5"]
    assert main([*argv, "data.limit_train=64"]) == 0
    printed = capsys.readouterr()
    report = json.loads(out.read_text())
    costs = report["costs"]
    assert report["images"] == 8 and report["treatments"] == ["2:4", "int8", "int4 weights", "structure 25 %"]
    assert [cost["kl"] for cost in costs] == sorted((cost["kl"] for cost in costs), reverse=True)
    assert len(costs) == 4 * 4 + 2 * (4 * 4 + 2) + 4 * 2
    assert {entry["name"] for entry in report["left"] if entry["treatment"] == "2:4"} == {"patch_embed.proj", "head"}
    lines = printed.out.splitlines()
    assert [line.split()[0] for line in lines[2:7]] == [cost["layer"] for cost in costs[:5]]
    assert "55 more cost less than these" in lines[7] and "2:4 leaves 2 layers" in printed.out
    assert "eta 0:00" in printed.err
    drawn = picture.read_text()
    assert drawn.lstrip().startswith("<?xml") and "</svg>" in drawn
    assert sorted(path.name for path in tmp_path.iterdir()) == ["costs.svg", "new"]


def test_a_picture_has_a_groups_cost_at_each_of_its_layers_in_call_order() -> None:
    _, found = measured("vit_tiny_patch16_224")
    layers, treatments, values = cells(found)
    assert (
        layers[0] == "patch_embed.proj"
        and layers[-1] == "head"
        and layers[1:3] == [f"blocks.0.attn.{n}" for n in ("qkv", "proj")]
    )
    heads = next(cost for cost in found.costs if cost.kind == "heads")
    assert values["blocks.0.attn.qkv", "structure 25 %"] == values["blocks.0.attn.proj", "structure 25 %"] == heads.kl
    assert ("head", "2:4") not in values and treatments == ["2:4", "int8", "structure 25 %"]


BAD = {
    "--images 0": "--images: 0; allowed: 1 or more",
    "--top -1": "--top: -1; allowed: 0 or more",
    "--share 100": "--share: 100; allowed: above 0 and below 100",
    "--treatments sparsity,magic": "--treatments: sparsity,magic; allowed: sparsity, quantization, weights, structure",
    "--treatments ,": "--treatments: ,; allowed: sparsity",
    "--picture costs.bmp": "--picture: costs.bmp: the format follows from the ending; allowed: .svg, .png, .pdf",
    "--json {tmp}": "{tmp}: a folder; name a file",
    "--json {tmp}/file/costs.json": "{tmp}/file is a file; choose another folder",
    "data.train=null": "data.train: not given; write data.train=FOLDER",
    "data.input_size=[3,48,48]": "model: cannot take images of [3, 48, 48]",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_gets_one_line(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["sensitivity", "quickstart", *words.format(tmp=tmp_path).split()]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and BAD[words].format(tmp=tmp_path) in errors[0], errors


def test_without_matplotlib_the_picture_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("act.sensitivity.picture.importlib.util.find_spec", lambda name: None)
    assert main(["sensitivity", "quickstart", "--picture", str(tmp_path / "costs.png")]) == 2
    assert "matplotlib is not installed; pip install 'vitcompress[report]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
