"""The plan: order of stages, layers with reasons, steps, memory, contradictions."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import timm
import torch
from torch import nn

from act.errors import InputError
from act.estimate import estimate_memory, kept_bytes, optimizer_states, output_sizes
from act.models import load_model
from act.plan import build_stages, make_plan, stage_name
from act.recipe.load import load_recipe, recipe_from_dict
from act.recipe.schema import ModelConfig, TrainConfig
from act.run.pace import measure_paces

MODEL = {
    "name": "vit_tiny_patch16_224",
    "num_classes": 10,
    "kwargs": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
}


def plan_of(**sections: Any) -> Any:
    recipe = recipe_from_dict({"model": MODEL, **sections})
    return make_plan(recipe, load_model(recipe.model))


@pytest.mark.parametrize("order", list(itertools.permutations(["Prune", "QuantAware", "Distillation"])))
def test_stages_come_in_order_of_phase_whatever_the_order_in_the_file(order: tuple[str, ...]) -> None:
    stages = build_stages(recipe_from_dict({name: {} for name in order}))
    assert [(stage.index, stage.name) for stage in stages] == [(1, "prune"), (2, "quant_aware")]
    assert all([objective.name for objective in stage.objectives] == ["Distillation"] for stage in stages)


@pytest.mark.parametrize(
    ("strategies", "expected"),
    [
        (["Prune"], [("prune", True, 0)]),
        (["QuantAware"], [("quant_aware", True, 0)]),
        (["QuantPost"], [("quant_post", False, 0)]),
        (["Distillation"], [("distillation", True, 1)]),
        (["Distillation", "QuantPost"], [("distillation", True, 1), ("quant_post", False, 0)]),
        (["QuantPost", "Prune", "Distillation"], [("prune", True, 1), ("quant_post", False, 0)]),
        (["QuantAware", "Prune"], [("prune", True, 0), ("quant_aware", True, 0)]),
    ],
)
def test_any_combination(strategies: list[str], expected: list[tuple[str, bool, int]]) -> None:
    stages = build_stages(recipe_from_dict({name: {} for name in strategies}))
    assert [(stage.name, stage.train is not None, len(stage.objectives)) for stage in stages] == expected


def test_no_strategy_is_an_error_that_names_them() -> None:
    with pytest.raises(InputError, match=r"names no strategy.*QuantPost: \{\}.*Prune"):
        build_stages(recipe_from_dict({"model": MODEL}))


def test_training_of_a_stage_alone_is_that_of_distillation() -> None:
    recipe = recipe_from_dict({"Distillation": {}, "TrainConfig": {"stages": {"Distillation": {"epochs": 7}}}})
    (stage,) = build_stages(recipe)
    assert stage.train is not None and stage.train.epochs == 7


def test_names() -> None:
    assert [stage_name(name) for name in ("Prune", "QuantAware", "Distillation")] == [
        "prune",
        "quant_aware",
        "distillation",
    ]


def test_every_layer_is_done_or_left_with_a_reason() -> None:
    plan = plan_of(Prune={"exclude": ["blocks.0.*"], "align": 1}, QuantAware={})
    layers = {
        name
        for name, module in load_model(ModelConfig(**MODEL)).named_modules()
        if type(module) in (nn.Linear, nn.Conv2d)
    }
    for entry in plan.stages:
        left = {layer.name: layer.reason for layer in entry.layers.left}
        assert set(entry.layers.done) | (set(left) & layers) == layers
        assert not set(entry.layers.done) & set(left) and all(left.values())
    prune = {layer.name: layer.reason for layer in plan.stages[0].layers.left}
    assert "excluded by 'blocks.0.*'" in prune["blocks.0.mlp.fc1"] and "head" in prune
    assert "blocks.1.mlp.fc1" in plan.stages[0].layers.done


def test_shapes_that_do_not_divide_are_left_with_that_reason() -> None:
    model = {**MODEL, "kwargs": {**MODEL["kwargs"], "embed_dim": 30}}
    left = {layer.name: layer.reason for layer in plan_of(model=model, Prune={"align": 1}).stages[0].layers.left}
    assert "not a multiple of 4" in left["blocks.0.attn.qkv"] and "blocks.0.mlp.fc2" not in left


def test_steps_follow_the_data() -> None:
    data = {"train": "builtin:digits.tar/train", "batch_size": 64}
    train = {"epochs": 3, "stages": {"QuantAware": {"train_iter": 17}}}
    plan = plan_of(data=data, Prune={}, QuantAware={}, TrainConfig=train)
    images = plan.train_images
    assert images is not None and images > 1000 and plan.labelled
    assert [(entry.steps, entry.length) for entry in plan.stages] == [
        (3 * (images // 64), "3 epochs"),
        (17, "train_iter"),
    ]
    small = plan_of(
        data={**data, "limit_train": 128}, Prune={}, TrainConfig={"epochs": 4, "accumulation": 2, "batch_size": 16}
    )
    assert small.stages[0].steps == 4 * 8 // 2


def test_without_data_the_steps_are_unknown_and_it_is_said() -> None:
    plan = plan_of(Prune={}, QuantPost={})
    assert [(entry.steps, entry.length) for entry in plan.stages] == [
        (None, "unknown: no data"),
        (None, "does not train"),
    ]
    assert any(text.startswith("data.train: not given; prune cannot train") for text in plan.warnings)
    assert any(text.startswith("data.val: not given") for text in plan.warnings)


def test_unlabelled_images_without_distillation_are_warned_of(tmp_path: Any) -> None:
    from PIL import Image

    for index in range(4):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{index}.png")
    data = {"train": str(tmp_path), "batch_size": 2}
    alone = plan_of(data=data, Prune={})
    assert alone.labelled is False and any("add `Distillation: {}`" in text for text in alone.warnings)
    assert not any("Distillation" in text for text in plan_of(data=data, Prune={}, Distillation={}).warnings)
    same = plan_of(data=data | {"val": str(tmp_path)}, QuantPost={})
    assert any("scores are not on unseen images" in text for text in same.warnings)


def test_a_model_that_teaches_itself_is_warned_of() -> None:
    assert any("teacher is the model itself" in text for text in plan_of(Distillation={}).warnings)
    other = plan_of(Distillation={"teacher": {"name": "vit_tiny_patch16_224"}})
    assert not any("teacher" in text for text in other.warnings)


def test_layer_weights_without_an_earlier_stage_are_warned_of() -> None:
    section = {"layer_weights": "sparse_aware"}
    alone = plan_of(Distillation=section, Prune={}, QuantPost={})
    assert any("layer_weights: sparse_aware takes the weights from an earlier stage" in w for w in alone.warnings)
    both = plan_of(Distillation=section, Prune={}, QuantAware={})
    assert not any("layer_weights" in text for text in both.warnings)


@pytest.mark.parametrize("section", ["QuantPost", "QuantAware"])
def test_bits_that_no_file_gains_by_are_warned_of(section: str) -> None:
    data = {"train": "builtin:digits.tar/train"}

    def said(**config: Any) -> list[str]:
        plan = plan_of(data=data, **{section: config}, Distillation={})
        return [text for text in plan.warnings if text.startswith(section)]

    weights, inputs = said(weight_bits=4, activation_bits=4)
    assert weights.startswith(f"{section}.weight_bits: 4 bits are kept as int8 codes")
    assert inputs.startswith(f"{section}.activation_bits: 4 bits are a simulation")
    assert said(weight_bits=4) == [weights] and said(weight_bits=4, weight_group_size=32, activation_bits=0) == []
    assert said() == [] and said(activation_bits=16) == []


def test_time_is_that_of_steps_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"train": "builtin:digits.tar/train", "limit_train": 64, "batch_size": 16, "workers": 0}
    train = {"epochs": 2, "stages": {"QuantAware": {"train_iter": 30, "accumulation": 2}}}
    recipe = recipe_from_dict(
        {"model": MODEL, "data": data, "Distillation": {}, "Prune": {}, "QuantAware": {}, "TrainConfig": train}
    )
    model = load_model(recipe.model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seconds = iter(range(1000))
    monkeypatch.setattr("act.run.pace.perf_counter", lambda: next(seconds) ** 2)
    first, second = measure_paces(make_plan(recipe, model), model)
    assert first is not None and second is not None
    # The steps end at 0, 1, 4, 9, 16: they took 1, 3, 5, 7 after the first; then at 25, 36, ...: 11, 13, 15, 17.
    assert (first.step_seconds, second.step_seconds) == (4, 14)
    assert (first.images_per_second, second.images_per_second) == (16 / 4, 32 / 14)
    assert (first.hours, second.hours) == (8 * 4 / 3600, 30 * 14 / 3600)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_time_needs_images_and_a_stage_that_trains() -> None:
    recipe = recipe_from_dict({"model": MODEL, "Prune": {}})
    model = load_model(recipe.model)
    with pytest.raises(InputError, match=r"data\.train: missing; --time runs a few training steps"):
        measure_paces(make_plan(recipe, model), model)
    still = recipe_from_dict({"model": MODEL, "QuantPost": {}})
    assert measure_paces(make_plan(still, model), model) == [None]


def test_a_node_that_is_not_in_the_model_is_refused_with_near_names() -> None:
    with pytest.raises(InputError) as caught:
        plan_of(Distillation={"node": ["blocks.11", "haed"]}, Prune={}, QuantAware={})
    assert any("blocks.11" in problem for problem in caught.value.problems)
    assert len(caught.value.problems) == len(set(caught.value.problems))


def test_the_model_is_left_as_it_was() -> None:
    recipe = load_recipe("quickstart")
    model = load_model(recipe.model).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    make_plan(recipe, model)
    assert model.training and kinds == [type(module) for module in model.modules()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_memory_is_the_documented_sum() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8, bias=False), nn.Dropout(0.1), nn.Linear(8, 4, bias=False))
    assert output_sizes(model, (3, 2, 2)) == {"0": 12, "1": 8, "3": 4}
    parameters = 12 * 8 + 8 * 4
    train = TrainConfig(optimizer="adamw", ema_decay=0.9, batch_size=5)
    memory = estimate_memory(model, (3, 2, 2), train, 64, [])
    assert memory.weights == memory.gradients == memory.averages == 4 * parameters
    assert memory.optimizer == 8 * parameters and memory.teacher == 0
    # What the two products keep: the image and the hidden values.
    assert memory.activations == 4 * 5 * (12 + 8)
    assert memory.total == 4 * parameters * 5 + 400
    distilled = build_stages(recipe_from_dict({"Distillation": {}}))[0].objectives
    half = estimate_memory(model, (3, 2, 2), TrainConfig(amp="bf16"), 64, distilled)
    assert half.activations == 2 * 64 * (12 + 8) and half.teacher == 4 * parameters + 4 * 64 * 20
    still = estimate_memory(model, (3, 2, 2), None, 64, [])
    assert still.total == 4 * parameters + 4 * 64 * 20


def test_kept_bytes_grow_with_the_images_and_leave_the_model_alone() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=5).eval().requires_grad_(False)
    kept = [kept_bytes(model, (3, 32, 32), half) for half in (False, True)]
    tokens, width = 5, 192
    # At least the inputs of the four products of a block and of its two norms.
    assert kept[0] > 2 * 4 * tokens * (5 * width + 4 * width) and 0.4 * kept[0] < kept[1] < kept[0]
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("name", "states"), [("momentum", 1), ("lion", 1), ("adamw", 2)])
def test_optimizer_states(name: str, states: int) -> None:
    assert optimizer_states(name) == states


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_other_families_can_be_planned(name: str) -> None:
    recipe = recipe_from_dict({"model": {"name": name}, "Prune": {}, "QuantPost": {}})
    plan = make_plan(recipe, timm.create_model(name).eval())
    assert all(entry.layers.done for entry in plan.stages)
