"""The embedded default: what is shipped is what the script makes, and the model really knows the digits."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from act.data.bundle import DataBundle
from act.data.preprocess import resolve_preprocess
from act.data.source import ASSETS
from act.recipe.schema import DataConfig

SCRIPT = Path(__file__).parent.parent / "scripts" / "make_quickstart.py"


def test_the_checkpoint_is_small_and_accurate() -> None:
    weights = load_file(ASSETS / "digits_vit.safetensors")
    assert (ASSETS / "digits_vit.safetensors").stat().st_size < 2_000_000
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=96, depth=4, num_heads=3, num_classes=10
    ).eval()
    model.load_state_dict(weights)
    cfg = DataConfig(val="builtin:digits.tar/val", workers=0, resize=32, interpolation="bilinear")
    bundle = DataBundle(cfg, resolve_preprocess(model, cfg), seed=0)
    bundle.check_head(model.num_classes)
    correct = 0
    with torch.inference_mode():
        for batch in bundle.val(64):
            assert batch.labels is not None
            correct += int((model(batch.images).argmax(1) == batch.labels).sum())
    assert bundle.val_images == 359 and correct >= 0.97 * 359


def test_the_script_makes_the_same_tar(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    script = runpy.run_path(str(SCRIPT))
    script["write_tar"](script["split_digits"](), tmp_path / "digits.tar")
    assert (tmp_path / "digits.tar").read_bytes() == (ASSETS / "digits.tar").read_bytes()
