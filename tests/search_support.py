"""What the tests of `vitcompress search` share: a recipe of a tiny model, its space, and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

RECIPE = """\
name: tiny
model:
  name: vit_tiny_patch16_224
  checkpoint: tiny.safetensors
  kwargs: {img_size: 16, patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}
data:
  train: builtin:digits.tar/train
  val: builtin:digits.tar/val
  workers: 0
  mean: [0.5]
  std: [0.5]
  batch_size: 16
  limit_val: 64
  calibration_images: 16
Distillation: {}
Prune: {align: 1}
QuantPost: {images: 16}
TrainConfig: {train_iter: 2}
target: {min_agreement: 5}
export: {benchmark_batches: [1], min_agreement: 0}
"""
SPACE = "QuantPost.weight_bits: {int: [4, 8], step: 2}\n"


def make_files(folder: Path) -> tuple[Path, Path]:
    """The recipe, with its checkpoint beside it, and the space."""
    torch.manual_seed(0)
    kwargs = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 10}
    save_file(timm.create_model("vit_tiny_patch16_224", **kwargs).state_dict(), folder / "tiny.safetensors")
    (folder / "tiny.yaml").write_text(RECIPE)
    (folder / "space.yaml").write_text(SPACE)
    return folder / "tiny.yaml", folder / "space.yaml"


def search(files: tuple[Path, Path], folder: Path, *more: str) -> list[str]:
    return ["search", str(files[0]), "--space", str(files[1]), "--dir", str(folder), *more]


def raising(error: BaseException, *args: object, **kwargs: object) -> Any:
    """Stands for a function that fails with `error`."""
    raise error
