"""Small models, images and a section to distil with."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from act.context import Context
from act.data.bundle import DataBundle
from act.recipe.schema import Recipe
from act.strategies.distillation import Distillation

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}


def make(name: str = "vit_tiny_patch16_224", seed: int = 0, **kwargs: Any) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(name, **{**SIZE, **kwargs})
    return model.eval()


def distilled(seed: int = 0, **kwargs: Any) -> nn.Module:
    return make("deit_tiny_distilled_patch16_224", seed, **kwargs)


def context(labelled: bool = False) -> Context:
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    tensors = (images, torch.arange(32) % 5) if labelled else (images,)
    bundle = DataBundle.from_loaders(DataLoader(TensorDataset(*tensors), batch_size=8))
    return Context(recipe=Recipe(), input_size=(3, 32, 32), data=bundle)


def strategy(**fields: Any) -> Distillation:
    config = Distillation.Config(**fields)
    assert Distillation.problems(config) == []
    return Distillation(config)


def losses(student: nn.Module, teachers: list[nn.Module], ctx: Context | None = None, **fields: Any) -> dict[str, Any]:
    objective = strategy(**fields).objective(student, teachers, ctx or context())
    student.train()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    terms = objective.losses(images, torch.arange(4), student(images))
    objective.close()
    student.eval()
    return terms


def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
