"""What a recipe without strategies becomes, and why."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import timm
from torch import nn

from act.automatic import choose_strategies
from act.errors import InputError
from act.recipe.schema import Recipe, TargetConfig
from act.strategies.base import load_strategies

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
SIZE = (3, 32, 32)


def data(images: int | None = 5000, labelled: bool = False) -> Any:
    return SimpleNamespace(has_train=True, train_images=images, labelled=labelled)


def vit() -> nn.Module:
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", **VIT)
    return model


def test_named_strategies_are_left_alone() -> None:
    recipe = Recipe(strategies={"QuantPost": load_strategies()["QuantPost"].Config()})
    assert choose_strategies(recipe, vit(), data(), SIZE) is None


@pytest.mark.parametrize(
    ("target", "sections"),
    [
        ({}, {"Distillation": {}, "TransformerPrune": {"pruned_ratio": 0.25}, "QuantPost": {}}),
        (
            {"speedup": 4.0, "backend": "openvino"},
            {"Distillation": {}, "TransformerPrune": {"pruned_ratio": None, "of": "latency"}, "QuantPost": {}},
        ),
        (
            {"macs": 1000},
            {"Distillation": {}, "TransformerPrune": {"pruned_ratio": None, "of": "macs"}, "QuantPost": {}},
        ),
        (
            {"device": "cuda"},
            {"Distillation": {}, "Prune": {"pattern": "2:4", "criterion": "sparsegpt"}, "QuantAware": {}},
        ),
        (
            {"backend": "tensorrt"},
            {"Distillation": {}, "Prune": {"pattern": "2:4", "criterion": "sparsegpt"}, "QuantAware": {}},
        ),
    ],
)
def test_choice_follows_target(
    target: dict[str, Any], sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = choose_strategies(Recipe(target=TargetConfig(**target)), vit(), data(), SIZE)
    assert found is not None and found.sections == sections
    assert set(found.recipe.strategies) == set(sections) and len(found.reasons) >= 2


def test_few_images_are_for_calibration_only() -> None:
    found = choose_strategies(Recipe(), vit(), data(300), SIZE)
    assert found is not None and list(found.sections) == ["QuantPost"] and "300" in found.reasons[0]


def test_a_gpu_without_sparse_tensor_cores_gets_no_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (7, 5))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "T4")
    found = choose_strategies(Recipe(target=TargetConfig(device="cuda")), vit(), data(), SIZE)
    assert found is not None and list(found.sections) == ["QuantPost"] and "T4" in found.reasons[0]


def test_a_model_without_a_view_is_quantised_only() -> None:
    model: nn.Module = timm.create_model("resnet10t", pretrained=False)
    found = choose_strategies(Recipe(), model, data(), SIZE)
    assert found is not None and list(found.sections) == ["QuantPost"]


def test_no_images_no_choice() -> None:
    with pytest.raises(InputError, match=r"data\.train"):
        choose_strategies(Recipe(), vit(), None, SIZE)
