"""Geometry and normalisation against an independent implementation, and what a recipe may override."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from act.data.decode import decode
from act.data.preprocess import crop_pixels, eval_transform, resolve_preprocess, shift_pixels, train_transform
from act.errors import InputError
from act.recipe.schema import AugmentConfig, DataConfig

REFBENCH = Path(os.environ.get("VITCOMPRESS_REFBENCH", Path(__file__).parents[2] / "shared" / "refbench"))
BILINEAR = DataConfig(resize=256, interpolation="bilinear", mean=[0.5], std=[0.5])
BICUBIC = DataConfig(resize=248, interpolation="bicubic", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def reference(image: Image.Image, cfg: DataConfig) -> np.ndarray:
    """Resize the shorter side, crop the centre 224, normalise: written with Pillow and numpy alone, in float64."""
    assert cfg.resize and cfg.interpolation and cfg.mean and cfg.std
    image = image.convert("RGB")
    scale = cfg.resize / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], FILTERS[cfg.interpolation])
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float64) / 255
    return ((pixels - np.array(cfg.mean)) / np.array(cfg.std)).transpose(2, 0, 1)


@pytest.mark.parametrize("cfg", [BILINEAR, BICUBIC], ids=["256-bilinear", "248-bicubic"])
@pytest.mark.parametrize("size", [(64, 64), (224, 224), (300, 150)])
def test_eval_transform_equals_a_plain_pillow_pipeline(cfg: DataConfig, size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    ours = eval_transform(resolve_preprocess(None, cfg))(image)
    assert ours.dtype == torch.float32
    assert np.abs(ours.numpy() - reference(image, cfg)).max() < 1e-6


@pytest.mark.parametrize(("bench", "cfg"), [("tinyimagenet", BILINEAR), ("imagenette", BICUBIC)])
def test_eval_transform_on_real_photographs(bench: str, cfg: DataConfig) -> None:
    folder = REFBENCH / bench / ("train" if bench == "tinyimagenet" else "calib")
    if not folder.is_dir():
        pytest.skip("no reference benchmarks here")
    paths = sorted(folder.glob("*/*.JPEG"))
    transform = eval_transform(resolve_preprocess(None, cfg))
    for path in paths[:: len(paths) // 40]:
        with open(path, "rb") as stream:
            ours = transform(decode(stream, 3))
        assert np.abs(ours.numpy() - reference(Image.open(path), cfg)).max() < 1e-6, path


@pytest.mark.parametrize("resize", [224, 225, 248, 255, 256, 288, 384])
def test_resize_is_exact_for_every_side(resize: int) -> None:
    # A vertical line at column c of the resized image lands at c - (resize - 224) // 2 after the crop.
    image = Image.new("L", (resize, resize))
    column = resize // 2
    image.paste(255, (column, 0, column + 1, resize))
    p = resolve_preprocess(None, DataConfig(resize=resize, input_size=[1, 224, 224], mean=[0.0], std=[1.0]))
    row = eval_transform(p)(image)[0, 100]
    assert row.nonzero().flatten().tolist() == [column - round((resize - 224) / 2)]


def test_resolves_the_models_own_config_and_every_override() -> None:
    model = timm.create_model("deit_tiny_patch16_224", pretrained=False, depth=1)
    p = resolve_preprocess(model, DataConfig())
    assert (p.input_size, p.crop_pct, p.interpolation, p.mean) == ((3, 224, 224), 0.9, "bicubic", (0.485, 0.456, 0.406))
    cfg = DataConfig(
        input_size=[3, 64, 96],
        crop_pct=0.5,
        crop_mode="squash",
        interpolation="bilinear",
        mean=[0.1, 0.2, 0.3],
        std=[0.4, 0.5, 0.6],
    )
    p = resolve_preprocess(model, cfg)
    assert p.input_size == (3, 64, 96) and p.crop_pct == 0.5 and p.crop_mode == "squash"
    assert p.interpolation == "bilinear" and p.mean == (0.1, 0.2, 0.3) and p.std == (0.4, 0.5, 0.6)
    assert eval_transform(p)(Image.new("RGB", (50, 80))).shape == (3, 64, 96)


def test_input_size_follows_the_patch_embedding() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, in_chans=1, depth=1)
    p = resolve_preprocess(model, DataConfig(mean=[0.5], std=[0.5]))
    assert p.input_size == (1, 32, 32) and p.mean == (0.5,)


def test_border_mode_keeps_the_whole_image() -> None:
    p = resolve_preprocess(None, DataConfig(crop_mode="border", resize=224, mean=[0.0], std=[1.0]))
    pixels = eval_transform(p)(Image.new("RGB", (100, 50), (255, 255, 255)))
    assert pixels[:, 112].min() > 0.99 and pixels[:, 20].max() < 0.01


def test_all_bad_values_are_reported_at_once() -> None:
    cfg = DataConfig(crop_mode="middle", interpolation="cubic", crop_pct=1.5, std=[0.0], input_size=[4, 224, 224])
    with pytest.raises(InputError) as caught:
        resolve_preprocess(None, cfg)
    text = str(caught.value)
    assert all(f"data.{name}:" in text for name in ("crop_mode", "interpolation", "crop_pct", "std", "input_size"))
    assert "center, squash, border" in text


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (DataConfig(resize=200), "data.resize: 200 is smaller"),
        (DataConfig(resize=256, crop_pct=0.9), "data.resize and data.crop_pct"),
        (DataConfig(mean=[0.5, 0.5]), "2 values for 3 channel"),
        (DataConfig(input_size=[1, 224, 224]), r"for 1 channel\(s\); give 1"),
    ],
)
def test_contradictions_are_refused(cfg: DataConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_preprocess(None, cfg)


def test_shift_repeats_the_edge() -> None:
    pixels = torch.arange(12.0).view(1, 3, 4)
    assert shift_pixels(pixels, 1, 0)[0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert shift_pixels(pixels, 0, -2)[0].tolist() == [[2, 3, 3, 3], [6, 7, 7, 7], [10, 11, 11, 11]]


def test_train_transform_flips_and_shifts_within_bounds() -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    p = resolve_preprocess(None, DataConfig(input_size=[3, 32, 32], resize=32, mean=[0.5], std=[0.5]))
    plain = eval_transform(p)(image)
    transform = train_transform(p, AugmentConfig(hflip=0.5, shift=2))
    allowed = [
        shift_pixels(base, down, right)
        for base in (plain, plain.flip(2))
        for down in range(-2, 3)
        for right in range(-2, 3)
    ]
    seen = set()
    for draw in range(300):
        result = transform(image, np.random.default_rng(draw))
        seen.add(next(i for i, one in enumerate(allowed) if torch.equal(one, result)))
    assert len(seen) == 50  # each of the 2 x 5 x 5 cases occurs, and nothing else does
    unchanged = train_transform(p, AugmentConfig(hflip=0.0, shift=0))
    assert torch.equal(unchanged(image, np.random.default_rng(0)), plain)


def test_crops_are_parts_of_the_image() -> None:
    """A ramp along each side shows which part was taken: its ends are inside, its area and sides within the bounds."""
    side = 64
    ramp = torch.linspace(0, 1, side)
    pixels = torch.stack([ramp[:, None].expand(side, side), ramp[None, :].expand(side, side)])
    areas = []
    for draw in range(200):
        crop = crop_pixels(pixels, 0.4, np.random.default_rng(draw))
        assert crop.shape == pixels.shape and crop.min() >= 0 and crop.max() <= 1
        height, width = (float(part.max() - part.min()) for part in crop)
        areas.append(height * width)
        assert 0.65 < height / width < 1.55
    assert 0.33 < min(areas) < 0.45 and max(areas) > 0.9
    assert np.mean(areas) == pytest.approx(0.7, abs=0.06)
    again = [crop_pixels(pixels, 0.4, np.random.default_rng(3)) for _ in range(2)]
    assert torch.equal(*again)


def test_bad_augmentation_is_refused() -> None:
    p = resolve_preprocess(None, DataConfig(input_size=[3, 32, 32]))
    with pytest.raises(InputError) as caught:
        train_transform(p, AugmentConfig(hflip=1.2, shift=32, scale=0.0))
    assert len(caught.value.problems) == 3
