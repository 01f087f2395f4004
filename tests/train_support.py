"""A small training: images that are counted when read, a tiny model, and the loop on both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from act.context import Context
from act.data.bundle import DataBundle
from act.recipe.schema import Recipe, TrainConfig
from act.train.recover import TrainResult, recover
from act.train.task import TaskLoss

IMAGES = 40


class Shuffled(Sampler[int]):
    """A permutation by (seed, epoch)."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return IMAGES

    def __iter__(self):
        yield from torch.randperm(IMAGES, generator=torch.Generator().manual_seed(self.epoch)).tolist()


class Counting(TensorDataset):
    """Remembers which images were read."""

    read: list[int]

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        self.read.append(index)
        return super().__getitem__(index)


def make_dataset() -> Counting:
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 5, (IMAGES,), generator=generator)
    images = torch.randn(IMAGES, 3, 32, 32, generator=generator) + labels[:, None, None, None]
    dataset = Counting(images, labels)
    dataset.read = []
    return dataset


def make_context(dataset: Counting | None = None, batch_size: int = 8, events: list[Any] | None = None) -> Context:
    dataset = dataset or make_dataset()
    loader = DataLoader(dataset, batch_size=batch_size, sampler=Shuffled())
    bundle = DataBundle.from_loaders(loader)
    dataset.read.clear()
    recipe = Recipe()
    recipe.data.batch_size = batch_size
    ctx = Context(recipe=recipe, input_size=(3, 32, 32), data=bundle)
    if events is not None:
        ctx.log = lambda event, message="", **fields: events.append((event, message, fields))
    return ctx


def make_model(**kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", **{**size, **kwargs})
    return model.eval()


def train(
    folder: Path, ctx: Context | None = None, evaluate: Any = None, **fields: Any
) -> tuple[nn.Module, TrainResult]:
    model = make_model(proj_drop_rate=0.1)
    strategy = fields.pop("strategy", None)
    cfg = TrainConfig(**{"train_iter": 7, "learning_rate": 1e-3, "save_iter": 1000, **fields})
    result = recover(model, strategy, [TaskLoss()], cfg, ctx or make_context(), folder, evaluate)
    return model, result


def same(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), two.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
