"""Training from image files: the order, the augmentation and the resume do not depend on the workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from act.context import Context
from act.data.bundle import DataBundle
from act.data.preprocess import resolve_preprocess
from act.recipe.schema import AugmentConfig, DataConfig, Recipe, TrainConfig
from act.train.recover import recover
from act.train.task import TaskLoss


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(30):
        path = root / "ab"[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return root


def train(images: Path, folder: Path, workers: int, kill: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=2
    )
    cfg = DataConfig(train=str(images), batch_size=4, workers=workers, augment=AugmentConfig(hflip=0.5, shift=2))
    recipe = Recipe(seed=3, data=cfg)

    def log(event: str, message: str = "", **fields: Any) -> None:
        if event == "train_step" and fields["step"] == kill:
            raise Killed

    ctx = Context(recipe, (3, 32, 32), DataBundle(cfg, resolve_preprocess(model, cfg), recipe.seed), log=log)
    train_cfg = TrainConfig(epochs=2, learning_rate=1e-3, save_iter=4, logging_iter=1)
    assert recover(model, None, [TaskLoss()], train_cfg, ctx, folder, None).steps == 14
    return model


def test_a_resumed_run_on_workers_ends_like_one_without(images: Path, tmp_path: Path) -> None:
    whole = train(images, tmp_path / "whole", workers=0)
    for kill in (6, 11):  # in the middle of the first epoch, and after the saved step 8 in the second
        folder = tmp_path / f"cut{kill}"
        with pytest.raises(Killed):
            train(images, folder, workers=2, kill=kill)
        resumed = train(images, folder, workers=1)
        for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(one, two)
