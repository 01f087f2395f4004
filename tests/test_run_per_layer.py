"""The report's `layers`: zeros, bits, work and the error of every layer's output."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
import torch
from test_strategies_contract import FAMILIES, SIZE, build, context, images, prepared
from torch import nn

from act.analysis import analyze
from act.context import Context
from act.data.bundle import DataBundle
from act.run.per_layer import layer_figures, output_errors
from act.strategies.base import load_strategies
from act.strategies.prune import Prune


def with_images(ctx: Context) -> Context:
    ctx.data = DataBundle.from_loaders([images(), images().flip(0)])
    return ctx


def by_name(found: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(entry["name"], entry["kind"]): entry for entry in found["entries"]}


def test_errors_are_the_norms_of_differences_over_all_images() -> None:
    model = build("vit_tiny_patch16_224")
    changed = deepcopy(model)
    with torch.no_grad():
        changed.get_submodule("blocks.1.mlp.fc1").weight *= 0.9  # type: ignore[operator]
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    found = output_errors(model, changed, names, images().split(3))
    assert list(found) == names  # every layer is compared, in the order asked for
    assert all(value == 0 for name, value in found.items() if name.startswith("blocks.0") or "attn" in name)

    seen: dict[str, Any] = {}
    for key, net in (("before", deepcopy(model).double()), ("after", deepcopy(changed).double())):
        layer = net.get_submodule("blocks.1.mlp.fc1")
        handle = layer.register_forward_hook(lambda module, args, output, key=key: seen.update({key: output}))
        with torch.no_grad():
            net(images().double())
        handle.remove()
    expected = float((seen["after"] - seen["before"]).norm() / seen["before"].norm())
    assert expected > 0.05 and found["blocks.1.mlp.fc1"] == pytest.approx(expected, rel=1e-3)
    assert 0 < found["head"] < 1


def test_zeros_bits_and_work_of_a_pruned_and_quantised_model() -> None:
    dense, model, ctx = build("vit_tiny_patch16_224"), build("vit_tiny_patch16_224"), context()
    strategies = load_strategies()
    for name, options in (("Prune", {"align": 1}), ("QuantPost", {})):
        strategy = strategies[name](strategies[name].Config(**options))
        strategy.prepare(model, ctx)
        strategy.finalize(model, ctx)
    found = layer_figures(dense, model, with_images(ctx))
    assert found["images"] == 8 and json.loads(json.dumps(found)) == found
    entries = by_name(found)
    assert len(found["entries"]) == len(analyze(dense, SIZE).products)
    qkv, scores, head = entries["blocks.0.attn.qkv", "qkv"], entries["blocks.0.attn", "qk^T"], entries["head", "head"]
    assert (qkv["zeros"], qkv["bits"], qkv["block"]) == (50.0, [8, 8], "blocks.0")
    assert (scores["zeros"], scores["bits"], scores["weighted"]) == (0.0, [32, 32], False)
    assert (head["zeros"], head["bits"], head["block"]) == (0.0, [32, 8], "")
    assert all(entry["macs"] == entry["macs_before"] > 0 for entry in found["entries"])
    assert all(("output_error" in entry) == entry["weighted"] for entry in found["entries"])
    assert all(0 < entry["output_error"] < 2 for entry in found["entries"] if entry["weighted"])


def test_channels_in_another_order_are_no_error() -> None:
    teacher = build("vit_tiny_patch16_224")
    student, ctx = deepcopy(teacher), context()
    pruned, pruning = deepcopy(teacher), context()
    Prune(Prune.Config(permute=True, criterion="magnitude", align=1)).prepare(pruned, pruning)
    (order,) = (edit for edit in pruning.edits if edit["op"] == "permute")
    ctx.edit(student, order)
    assert any(not torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))
    found = layer_figures(teacher, student, with_images(ctx))
    errors = [entry["output_error"] for entry in found["entries"] if entry["weighted"]]
    assert len(errors) > 8 and max(errors) < 1e-5


def test_removed_blocks_and_narrower_layers() -> None:
    dense, model, ctx = build("vit_tiny_patch16_224"), build("vit_tiny_patch16_224"), context()
    ctx.edit(model, {"op": "remove_blocks", "layers": ["blocks.1"]})
    found = layer_figures(dense, model, with_images(ctx))
    assert {entry["block"] for entry in found["entries"] if entry["macs"] == 0} == {"blocks.1"}
    assert all("output_error" not in entry for entry in found["entries"] if entry["block"] == "blocks.1")
    assert by_name(found)["blocks.0.mlp.fc2", "fc2"]["output_error"] == 0

    dense, model, _, ctx = prepared("TransformerPrune", "vit_tiny_patch16_224")
    entries = by_name(layer_figures(dense, model, with_images(ctx)))
    narrow = [entry for entry in entries.values() if entry["kind"] == "fc1" and entry["macs"] < entry["macs_before"]]
    assert narrow and all("output_error" not in entry for entry in narrow)
    assert all("output_error" in entry for entry in entries.values() if entry["kind"] == "fc2")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_product_of_other_families_is_there(family: str) -> None:
    dense, model, _, ctx = prepared("QuantPost", family)
    found = layer_figures(dense, model, with_images(ctx))
    assert sum(entry["macs_before"] for entry in found["entries"]) == analyze(dense, SIZE).macs
    assert sum(entry["macs"] for entry in found["entries"]) == analyze(model, SIZE).macs
    assert any(entry["bits"] == [8, 8] for entry in found["entries"])
    assert any(entry.get("output_error", 0) > 0 for entry in found["entries"])


def test_without_images_nothing_is_compared() -> None:
    dense, ctx = build("vit_tiny_patch16_224"), context()
    ctx.data = None
    found = layer_figures(dense, deepcopy(dense), ctx)
    assert found["images"] == 0 and not any("output_error" in entry for entry in found["entries"])
