"""Strategies for a recipe that names none: from the model, the data, the target and the hardware it is for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from act.context import Context
from act.errors import InputError
from act.recipe.schema import Recipe, TargetConfig
from act.strategies.base import load_strategies

if TYPE_CHECKING:
    from act.data.bundle import DataBundle

ENOUGH_IMAGES = 1000  # to train on; below that only what calibration can do is done
RATIO = 0.25
INTEGER_FEATURES = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
SPARSE_CAPABILITY = (8, 0)  # the first CUDA capability whose tensor cores know 2:4


@dataclass(frozen=True)
class Automatic:
    """The recipe with its strategies, its sections as one would write them, and the reason for each choice."""

    recipe: Recipe
    sections: dict[str, dict[str, Any]]
    reasons: list[str]


def choose_strategies(
    recipe: Recipe, model: nn.Module, data: DataBundle | None, input_size: tuple[int, int, int]
) -> Automatic | None:
    """None where the recipe names a strategy. InputError where nothing can be chosen: no images at all."""
    if recipe.strategies:
        return None
    if data is None or not data.has_train:
        raise InputError(
            f"{recipe.name}: names no strategy, and there are no images to choose one for; name a folder in data.train "
            f"(labels are optional), or a strategy: {', '.join(load_strategies())}"
        )
    sections, reasons = _choose(recipe, model, data, input_size)
    registry = load_strategies()
    strategies = {name: registry[name].Config(**values) for name, values in sections.items()}
    return Automatic(dataclasses.replace(recipe, strategies=strategies), sections, reasons)


def _choose(
    recipe: Recipe, model: nn.Module, data: DataBundle, input_size: tuple[int, int, int]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    target, images = recipe.target, data.train_images
    trains = images is None or images >= ENOUGH_IMAGES
    quantize: dict[str, dict[str, Any]] = {"QuantPost": {}}
    if not trains:
        why = f"QuantPost alone: {images} training images are too few to train on (from {ENOUGH_IMAGES})"
        return quantize, [why]
    learn = "labels are there, but the original model is the better teacher" if data.labelled else "no labels"
    distil = f"Distillation: pruning is recovered by imitating the original ({learn})"
    if _gpu(target):
        sparse = _sparse_reason(target)
        if sparse is None:
            sections = {"Distillation": {}, "Prune": {"pattern": "2:4", "criterion": "sparsegpt"}, "QuantAware": {}}
            return sections, [
                "Prune 2:4: sparse tensor cores run it",
                distil,
                "QuantAware: int8 with the masks in place",
            ]
        return quantize, [f"no 2:4: {sparse}", "QuantPost: int8"]
    if not _prunable(model, recipe, input_size):
        return quantize, ["no TransformerPrune: it has no view of this model's attention or MLPs", "QuantPost: int8"]
    pruning, why = _pruning(target)
    reasons = [why, distil, _integers()]
    return {"Distillation": {}, "TransformerPrune": pruning, **quantize}, reasons


def _pruning(target: TargetConfig) -> tuple[dict[str, Any], str]:
    """The section of TransformerPrune, and why."""
    if target.latency_ms is not None or target.speedup is not None:
        goal = "latency_ms" if target.latency_ms is not None else "speedup"
        why = f"TransformerPrune: as much as target.{goal} needs beyond int8, measured in {target.backend}"
        return {"pruned_ratio": None, "of": "latency"}, why
    if target.macs is not None:
        return {"pruned_ratio": None, "of": "macs"}, "TransformerPrune: down to target.macs"
    return {"pruned_ratio": RATIO}, f"TransformerPrune: a CPU is faster with less work; {RATIO:.0%} of it, no goal asks"


def _integers() -> str:
    from act.run.environment import describe

    found = [feature for feature in describe()["cpu_features"] if feature in INTEGER_FEATURES]
    fast = f"this CPU multiplies integers ({', '.join(found)})" if found else "a smaller file, though not faster here"
    return f"QuantPost: int8, {fast}; calibration loses too little to train for"


def _gpu(target: TargetConfig) -> bool:
    return target.device == "cuda" or target.backend == "tensorrt"


def _sparse_reason(target: TargetConfig) -> str | None:
    """Why 2:4 would not pay on the GPU here; None if it may."""
    if not torch.cuda.is_available():
        return None  # made for another machine
    capability = torch.cuda.get_device_capability()
    if capability >= SPARSE_CAPABILITY:
        return None
    return f"{torch.cuda.get_device_name()} has no sparse tensor cores"


def _prunable(model: nn.Module, recipe: Recipe, input_size: tuple[int, int, int]) -> bool:
    cls = load_strategies()["TransformerPrune"]
    strategy, ctx = cls(cls.Config()), Context(recipe, input_size)
    return strategy.unsupported(model, ctx) is None and bool(strategy.select(model, ctx).done)
