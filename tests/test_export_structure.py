"""Files of structurally pruned models: the shapes in them are the smaller ones, and every form computes the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from test_structure import build
from torch import nn

from act.backends import get_backend
from act.context import Context
from act.edits import apply_edit
from act.models import logits
from act.recipe.schema import ExportConfig, Recipe
from act.run.formats import FORMATS, Job
from act.strategies.base import load_strategies
from act.structure.shrink import shrink_edit
from act.structure.units import AttentionUnits, find_units

SIZE = (3, 32, 32)


class Data:
    def calibration(self, images: int, batch_size: int) -> list[Any]:
        from act.data.batch import Batch

        return [Batch(torch.randn(8, *SIZE, generator=torch.Generator().manual_seed(1)), None)]


def cut(family: str, qk: int, v: int) -> nn.Module:
    """A model with one head less where it can, `qk` and `v` dimensions where they can, and 5/8 of its hidden units."""
    model = build(family).float()
    sizes: dict[str, tuple[int, ...]] = {}
    for group in find_units(model).groups:
        if isinstance(group, AttentionUnits):
            wide = group.qk_dim if group.qk_reason else min(qk, group.qk_dim)
            narrow = group.v_dim if group.v_reason else min(v, group.v_dim)
            sizes[group.name] = (max(1, group.heads - 1), wide, narrow)
        else:
            sizes[group.name] = (group.hidden * 5 // 8,)
    apply_edit(model, shrink_edit(sizes))
    return model.eval()


@pytest.mark.parametrize("family", ["vit", "vit with q/k norm", "swin", "beit", "cait", "pvt2", "eva02"])
def test_exported_shapes_are_the_smaller_ones(family: str, tmp_path: Path) -> None:
    model = cut(family, 8, 12)
    path = tmp_path / "model.onnx"
    FORMATS["onnx"].write(Job(model, path, Context(Recipe(), SIZE), {}))
    shapes = [tuple(tensor.dims) for tensor in onnx.load(str(path)).graph.initializer]
    for group in find_units(model).groups:
        weight = model.get_submodule(group.reader).weight
        assert isinstance(weight, torch.Tensor)
        out, width = weight.shape[:2]
        assert any(set(shape[:2]) == {out, width} or shape[:2] == (width, out) for shape in shapes if len(shape) >= 2)
    images = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = logits(model(images)).numpy()
    np.testing.assert_allclose(get_backend("onnxruntime").load(path).run(images.numpy()), expected, atol=2e-4)


@pytest.mark.parametrize(("qk", "v"), [(16, 16), (8, 16), (8, 8)])
@pytest.mark.parametrize("attention", ["int8", "float"])
def test_every_form_of_a_quantised_pruned_model_agrees(qk: int, v: int, attention: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    recipe = Recipe(export=ExportConfig(attention=attention))
    recipe.data.calibration_images = 8
    ctx = Context(recipe, SIZE, Data())  # type: ignore[arg-type]
    model = cut("vit", qk, v)
    cls = load_strategies()["QuantPost"]
    cls(cls.Config(quantize_op_types=["linear", "conv2d", "matmul"])).prepare(model, replace(ctx, edits=[]))
    job = Job(model, tmp_path / "model.onnx", ctx, {})
    images = torch.randn(16, *SIZE, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = logits(model(images)).numpy()
    for name in ("onnx", "onnxruntime", "openvino"):
        written = FORMATS[name].write(job)
        found = get_backend(FORMATS[name].backend).load(written.path).run(images.numpy())
        assert np.abs(found - expected).max() < 0.1 * expected.std(), name
