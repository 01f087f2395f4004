"""The contract of every registered strategy on several unmodified timm families.

A new strategy is covered by being registered; a new family by one line in FAMILIES.
"""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from act.context import Context
from act.data.batch import Batch
from act.errors import InputError
from act.layers import compressed_layers
from act.models import logits
from act.rebuild import load_model_folder, save_model
from act.recipe.schema import Recipe
from act.strategies.base import Phase, load_strategies

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
FAMILIES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": VIT,
    "deit_tiny_distilled_patch16_224": VIT,
    "deit3_small_patch16_224": VIT,
    "swin_tiny_patch4_window7_224": {
        "img_size": 32,
        "window_size": 4,
        "embed_dim": 16,
        "depths": (2, 2),
        "num_heads": (2, 4),
    },
    "cait_xxs24_224": {**VIT, "depth": 2, "depth_token_only": 1},
    "beit_base_patch16_224": VIT,
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (16, 32, 32, 64)},
    "pvt_v2_b0": {"depths": (1, 1, 1, 1)},
}
SUPPORTED = ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224")  # by every one
STAGES = [name for name, cls in load_strategies().items() if cls.phase is not Phase.OBJECTIVE]
SIZE = (3, 32, 32)


class Data:
    """Calibration images as a strategy reads them."""

    def calibration(self, images: int, batch_size: int) -> list[Batch]:
        pixels = torch.randn(min(images, 8), *SIZE, generator=torch.Generator().manual_seed(1))
        return [Batch(pixels, None)]


def build(family: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(family, num_classes=10, **FAMILIES[family])
    with torch.no_grad():  # freshly built heads and LayerScales are so close to zero that nothing could be seen
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def context() -> Context:
    recipe = Recipe()
    recipe.data.calibration_images = 8
    return Context(recipe, SIZE, Data())  # type: ignore[arg-type]


def prepared(name: str, family: str) -> tuple[nn.Module, nn.Module, Any, Context]:
    """(dense model, compressed model, strategy, context)."""
    cls = load_strategies()[name]
    dense = build(family)
    model, ctx, strategy = deepcopy(dense), context(), cls(cls.Config())
    strategy.prepare(model, ctx)
    return dense, model, strategy, ctx


def images() -> Tensor:
    return torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", STAGES)
def test_contract(name: str, family: str, tmp_path: Path) -> None:
    cls = load_strategies()[name]
    reason = cls(cls.Config()).unsupported(build(family), context())
    if reason is not None:
        assert family not in SUPPORTED
        for attempt in (cls(cls.Config()).select, cls(cls.Config()).prepare):
            untouched = build(family)
            with pytest.raises(InputError, match=re.escape(reason)):
                attempt(untouched, context())
            state = untouched.state_dict()
            assert all(torch.equal(value, state[key]) for key, value in build(family).state_dict().items())
        return
    dense, model, strategy, ctx = prepared(name, family)
    plan = cls(cls.Config()).select(deepcopy(dense), context())

    # Nothing is silent: every layer of the kinds it touches is either done or left with a reason.
    listed = set(plan.done) | {left.name for left in plan.left}
    layers = {n for n, m in dense.named_modules() if isinstance(m, cls.touches)}
    assert plan.done and layers <= listed
    assert not set(plan.done) & {left.name for left in plan.left}
    assert all(left.reason for left in plan.left)
    touched = {n for n, _ in compressed_layers(model)}
    compressible = {n for n, m in dense.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert touched == set(plan.done) & compressible

    # The compressed model still computes something close to nothing else than the dense one's outputs.
    with torch.no_grad():
        before, after = logits(dense(images())), logits(model(images()))
    assert after.shape == before.shape and bool(after.isfinite().all())
    assert not torch.equal(after, before)

    # Gradients reach every parameter that had one before, unless it went with what the strategy removed.
    model.train()
    logits(model(images())).square().sum().backward()
    dense.train()
    logits(dense(images())).square().sum().backward()
    had = {n for n, p in dense.named_parameters() if p.grad is not None}
    has = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.isfinite().all())}
    gone = {n for n, _ in dense.named_parameters()} - {n for n, _ in model.named_parameters()}
    settled = set(strategy.settled(model, plan).done)
    assert all(any(n.startswith(f"{layer}.") for layer in settled) for n in gone)
    assert had - gone <= has

    # An optimiser step, then the promises hold and the model is rebuilt bit for bit.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad.sign()
    strategy.after_step(model, 1, 1)
    strategy.finalize(model, ctx)
    model.eval()
    assert all(invariant.holds for invariant in strategy.invariants(model))
    source = {"name": family, "kwargs": FAMILIES[family], "num_classes": 10}
    save_model(tmp_path, model, source, ctx.edits)
    rebuilt = load_model_folder(tmp_path).eval()
    state = rebuilt.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(logits(rebuilt(images())), logits(model(images())))


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_survive_quantisation_training(family: str) -> None:
    strategies = load_strategies()
    model, ctx = build(family), context()
    prune = strategies["Prune"](strategies["Prune"].Config(align=4))
    quant = strategies["QuantAware"](strategies["QuantAware"].Config())
    prune.prepare(model, ctx)
    prune.finalize(model, ctx)
    quant.prepare(model, ctx)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(3):
        optimizer.zero_grad()
        logits(model(images())).square().sum().backward()
        optimizer.step()
        quant.after_step(model, step + 1, 3)
    quant.finalize(model, ctx)
    for strategy in (prune, quant):
        for invariant in strategy.invariants(model):
            assert invariant.holds, invariant
    for name, layer in compressed_layers(model):
        if layer.weight_mask is not None and layer.weight_quantizer is not None:
            codes = layer.weight_quantizer.codes(layer.weight * layer.weight_mask)
            assert bool((codes[~layer.weight_mask] == 0).all()), name


def test_the_pull_of_sr_ste_counts_once_however_many_batches_make_a_step() -> None:
    cls = load_strategies()["Prune"]
    gradients = []
    for decay in (0.0, 0.5):
        model, ctx = build("vit_tiny_patch16_224"), context()
        strategy = cls(cls.Config(mask="sr-ste", decay=decay))
        strategy.prepare(model, ctx)
        for batch in images().split(2):
            logits(model(batch)).square().sum().backward()
        strategy.before_step(model)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    masked = [(n, layer) for n, layer in compressed_layers(model) if layer.weight_mask is not None]
    assert masked
    for name, layer in masked:
        plain, pulled = (found.pop(f"{name}.weight") for found in gradients)
        torch.testing.assert_close(pulled - plain, 0.5 * ~layer.weight_mask * layer.weight, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_sr_ste_moves_masks_and_fixed_masks_stay() -> None:
    cls = load_strategies()["Prune"]
    for kind in ("fixed", "sr-ste"):
        model, ctx = build("vit_tiny_patch16_224"), context()
        strategy = cls(cls.Config(mask=kind))
        strategy.prepare(model, ctx)
        masks = {n: layer.weight_mask.clone() for n, layer in compressed_layers(model)}  # type: ignore[union-attr]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        logged = strategy.after_step(model, 1, 10)
        moved = any(not torch.equal(layer.weight_mask, masks[n]) for n, layer in compressed_layers(model))  # type: ignore[arg-type]
        assert moved == (kind == "sr-ste")
        assert (logged.get("mask_flip_rate", 0.0) > 0) == moved
        by_layer = {n: logged[f"mask_flip_rate.{n}"] for n in masks} if moved else {}
        for n, layer in compressed_layers(model):
            if moved:
                assert by_layer[n] == pytest.approx(float((layer.weight_mask != masks[n]).float().mean()))
        assert strategy.after_step(model, 10, 10).keys() == logged.keys()
        strategy.finalize(model, ctx)
        assert all(invariant.holds for invariant in strategy.invariants(model))
