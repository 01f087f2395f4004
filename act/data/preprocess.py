"""Geometry and normalisation: what timm resolves for the model, each part of it overridable by the recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from act.errors import InputError

if TYPE_CHECKING:
    from act.recipe.schema import AugmentConfig, DataConfig

_ASPECT = np.log(4 / 3)
CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the model's input.

    `input_size` is (channels, height, width). `resize` is the shorter side in pixels before the crop (both sides
    with `squash`, the longer one with `border`); None leaves it to `crop_pct`: floor(side / crop_pct).
    `mean` and `std` have one value per channel, for pixels in 0..1.
    """

    input_size: tuple[int, int, int]
    resize: int | None
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def resolve_preprocess(model: nn.Module | None, cfg: DataConfig) -> Preprocess:
    """timm's data config of `model` (timm's general defaults without one), overridden field by field by `cfg`.

    The input size is that of the model's patch embedding where it has a fixed one, because a timm model created
    with another `img_size` still carries the size of its pretrained weights in `pretrained_cfg`.

    Raises:
        InputError: every value that cannot be used, all at once.
    """
    fixed = _fixed_input(model)
    requested = {"input_size": cfg.input_size or (fixed and list(fixed))}
    for name in ("crop_pct", "crop_mode", "interpolation"):
        requested[name] = getattr(cfg, name)
    problems = _problems(cfg)
    if problems:
        raise InputError(problems)
    pretrained = getattr(model, "pretrained_cfg", None) or {}
    found: dict[str, Any] = resolve_data_config(args=requested, pretrained_cfg=pretrained)
    channels, height, width = (int(length) for length in found["input_size"])
    result = Preprocess(
        input_size=(channels, height, width),
        resize=cfg.resize,
        crop_pct=float(found["crop_pct"]),
        crop_mode=str(found["crop_mode"]),
        interpolation=str(found["interpolation"]),
        mean=_per_channel("mean", cfg.mean, found["mean"], channels),
        std=_per_channel("std", cfg.std, found["std"], channels),
    )
    if result.resize is not None and result.resize < min(height, width):
        raise InputError(
            f"data.resize: {result.resize} is smaller than the model's input of {height} x {width}, the crop would "
            f"need padding; allowed: {min(height, width)} or more"
        )
    return result


def eval_transform(p: Preprocess) -> Callable[[Image.Image], Tensor]:
    """timm's evaluation transform: image (mode RGB or L) -> float32 [C, H, W]."""
    # timm takes the resize only as floor(side / crop_pct); the half pixel keeps rounding from losing one.
    crop_pct = p.crop_pct if p.resize is None else min(p.input_size[1:]) / (p.resize + 0.5)
    transform: Callable[[Image.Image], Tensor] = create_transform(
        input_size=p.input_size,
        is_training=False,
        crop_pct=crop_pct,
        crop_mode=p.crop_mode,
        interpolation=p.interpolation,
        mean=p.mean,
        std=p.std,
    )
    return transform


@dataclass(frozen=True)
class TrainTransform:
    """The evaluation geometry, then a random flip, crop and shift; float32 [C, H, W].

    Recovery is to keep what the model knows, on images as it will meet them, so there is no random colour. Crops help
    where images are seen several times: a small model knows a teacher's answer to an image after one visit.
    """

    geometry: Callable[[Image.Image], Tensor]
    hflip: float
    shift: int
    scale: float = 1.0

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        pixels = self.geometry(image)
        # Drawn whether used or not: the flips of a seed stay the same when `shift` is changed, and the reverse.
        flip = bool(rng.random() < self.hflip)
        down, right = (int(step) for step in rng.integers(-self.shift, self.shift + 1, 2))
        if flip:
            pixels = pixels.flip(2)
        if self.scale < 1:
            pixels = crop_pixels(pixels, self.scale, rng)
        return shift_pixels(pixels, down, right) if down or right else pixels


def train_transform(p: Preprocess, augment: AugmentConfig) -> TrainTransform:
    """See `TrainTransform`.

    Raises:
        InputError: `hflip` or `scale` outside 0..1, or a `shift` that is negative or not smaller than the image.
    """
    problems = []
    if not 0 <= augment.hflip <= 1:
        problems.append(f"data.augment.hflip: {augment.hflip} is no probability; allowed: 0 to 1")
    if not 0 <= augment.shift < min(p.input_size[1:]):
        limit = min(p.input_size[1:]) - 1
        problems.append(f"data.augment.shift: {augment.shift} pixels cannot be; allowed: 0 to {limit}")
    if not 0 < augment.scale <= 1:
        problems.append(f"data.augment.scale: {augment.scale} is no share of an area; allowed: above 0, up to 1")
    if problems:
        raise InputError(problems)
    return TrainTransform(eval_transform(p), augment.hflip, augment.shift, augment.scale)


def crop_pixels(pixels: Tensor, scale: float, rng: np.random.Generator) -> Tensor:
    """A random part of an image [C, H, W], resized to its size: `scale` to 1 of its area, sides up to 3:4 off its own
    (the crop of arXiv 1409.4842, as everyone trains with)."""
    height, width = pixels.shape[1:]
    area, ratio = rng.uniform(scale, 1), np.exp(rng.uniform(-_ASPECT, _ASPECT))
    rows, columns = (
        max(1, min(length, round(length * (area * share) ** 0.5)))
        for length, share in ((height, 1 / ratio), (width, ratio))
    )
    top, left = (int(rng.integers(0, free + 1)) for free in (height - rows, width - columns))
    part = pixels[:, top : top + rows, left : left + columns]
    resized: Tensor = F.interpolate(part[None], size=(height, width), mode="bilinear", align_corners=False)[0]
    return resized


def shift_pixels(pixels: Tensor, down: int, right: int) -> Tensor:
    """Move an image [C, H, W] by whole pixels; the edge it leaves behind repeats its outermost row or column."""
    height, width = pixels.shape[1:]
    top, bottom, left, right_end = max(down, 0), height + min(down, 0), max(right, 0), width + min(right, 0)
    # Copying one block and then its edges takes a third of the time of gathering by row and column index.
    moved = torch.empty_like(pixels)
    moved[:, top:bottom, left:right_end] = pixels[:, top - down : bottom - down, left - right : right_end - right]
    moved[:, top:bottom, :left] = moved[:, top:bottom, left : left + 1]
    moved[:, top:bottom, right_end:] = moved[:, top:bottom, right_end - 1 : right_end]
    moved[:, :top] = moved[:, top : top + 1]
    moved[:, bottom:] = moved[:, bottom - 1 : bottom]
    return moved


def _fixed_input(model: nn.Module | None) -> tuple[int, int, int] | None:
    embed = getattr(model, "patch_embed", None)
    size, projection = getattr(embed, "img_size", None), getattr(embed, "proj", None)
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not isinstance(projection, nn.Conv2d):
        return None
    return projection.in_channels, int(size[0]), int(size[1])


def _problems(cfg: DataConfig) -> list[str]:
    problems = []
    if cfg.input_size is not None and (
        len(cfg.input_size) != 3 or cfg.input_size[0] not in (1, 3) or min(cfg.input_size) < 1
    ):
        problems.append(f"data.input_size: {list(cfg.input_size)}; allowed: [1 or 3, height, width]")
    if cfg.crop_pct is not None and not 0 < cfg.crop_pct <= 1:
        problems.append(f"data.crop_pct: {cfg.crop_pct}; allowed: above 0, up to 1")
    if cfg.crop_pct is not None and cfg.resize is not None:
        problems.append("data.resize and data.crop_pct both set the size before the crop; leave one of them out")
    for name, value, allowed in (
        ("crop_mode", cfg.crop_mode, CROP_MODES),
        ("interpolation", cfg.interpolation, INTERPOLATIONS),
    ):
        if value is not None and value not in allowed:
            problems.append(f"data.{name}: {value!r} is unknown; allowed: {', '.join(allowed)}")
    if cfg.std is not None and any(value <= 0 for value in cfg.std):
        problems.append(f"data.std: {list(cfg.std)}; every value must be above 0")
    return problems


def _per_channel(name: str, given: list[float] | None, found: Any, channels: int) -> tuple[float, ...]:
    values = tuple(float(value) for value in (found if given is None else given))
    if len(values) == 1:
        return values * channels
    if len(values) != channels:
        source = "the recipe" if given is not None else "timm's config of the model"
        raise InputError(
            f"data.{name}: {source} gives {len(values)} values for {channels} channel(s); "
            f"give {'1' if channels == 1 else f'1 or {channels}'}"
        )
    return values
