"""An export leaves nothing of its traces in the process."""

from __future__ import annotations

import gc
import linecache
from contextlib import nullcontext
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.fx import graph_module
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from act.errors import ExportError
from act.export.onnx import export_onnx

SIZE = (3, 32, 32)


class _Untraceable(nn.Module):
    """Fails after layers that were traced."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, 5)

    def forward(self, images: Tensor) -> Tensor:
        scores = self.head(images.flatten(1))
        return scores if scores.sum() > 0 else -scores


def _vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=5
    ).eval()


def _kept() -> tuple[int, int, int]:
    """ShapeEnvs alive, generated sources kept by torch, lines of generated sources kept for tracebacks."""
    gc.collect()
    alive = sum(type(found) is ShapeEnv for found in gc.get_objects())
    generated = [name for name in linecache.cache if name.startswith("<eval_with_key>")]
    return alive, len(graph_module._loader.eval_cache), len(generated)


@pytest.mark.parametrize("fails", [False, True])
def test_no_trace_is_kept(fails: bool, tmp_path: Path) -> None:
    model, kept = _Untraceable() if fails else _vit(), []
    for _ in range(3):
        with pytest.raises(ExportError) if fails else nullcontext():
            export_onnx(model, tmp_path / "model.onnx", SIZE)
        kept.append(_kept())
    assert kept[2] == kept[1] == kept[0]  # not the count before: torch's random state holds the last trace


def test_a_program_traced_before_stays_usable(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(_vit(), (torch.zeros(2, *SIZE),), dynamic_shapes=({0: batch},))
    export_onnx(_vit(), tmp_path / "model.onnx", SIZE)
    assert program.run_decompositions().module()(torch.zeros(3, *SIZE)).shape == (3, 5)
