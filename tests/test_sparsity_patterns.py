"""Every N:M pattern from its mask to the check of the exported file."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import onnx
import pytest
import torch
from export_support import VIT, base_model, calibrate, images, linear_names, quantize_edit, write_artifact
from onnx import numpy_helper
from test_strategies_contract import context
from torch import nn

from act.layers import compressed_layers
from act.rebuild import read_tensors
from act.sparsity.masks import nm_mask, nm_violations, parse_pattern
from act.strategies.prune import Prune
from act.verify.folder import verify_folder
from act.verify.match import Expected, sparse_weights
from act.verify.onnx_file import OnnxFile
from act.verify.rules import Broken
from act.verify.tensorrt import lint, lint_file, sparse_products

PATTERNS = ["1:4", "2:4", "3:4", "4:8", "2:8", "4:8 pairs", "2:4 pairs"]


def pruned(pattern: str, criterion: str) -> nn.Module:
    model, ctx = base_model(**VIT), context()
    strategy = Prune(Prune.Config(pattern=pattern, criterion=criterion))
    assert strategy.problems(strategy.config) == []
    strategy.prepare(model, ctx)
    strategy.finalize(model, ctx)
    assert all(item.holds for item in strategy.invariants(model))
    return model


def every_pattern(folder: Path) -> dict[str, str]:
    """An artifact of int8 layers, each of another pattern; the patterns by layer."""
    model, ctx = base_model(**VIT), context()
    names = linear_names(model)
    patterns = dict(zip([name for name in names if name.startswith("blocks.")], cycle(PATTERNS), strict=False))
    for name, pattern in patterns.items():
        ctx.edit(model, {"op": "mask", "layers": [name], "pattern": pattern})
        layer = model.get_submodule(name)
        layer.weight_mask.copy_(nm_mask(layer.weight.detach().abs(), *parse_pattern(pattern)))
        layer.weight.data.mul_(layer.weight_mask)
    ctx.edit(model, quantize_edit(names))
    calibrate(model, images(8))
    write_artifact(folder, model, ctx.edits)
    return patterns


def test_exported_integers_keep_every_pattern_and_verify_sees_when_they_do_not(tmp_path: Path) -> None:
    patterns = every_pattern(tmp_path)
    assert set(patterns.values()) == set(PATTERNS)
    assert [item.detail for item in verify_folder(tmp_path) if not item.holds] == []
    path = tmp_path / "model.onnx"
    codes = {t.name: numpy_helper.to_array(t).T.copy() for t in onnx.load(path).graph.initializer}
    for name, pattern in patterns.items():
        assert nm_violations(torch.from_numpy(codes[f"{name}.weight_int8"]), *parse_pattern(pattern)) == 0

    # TensorRT's rules: each pattern is checked as it is claimed, and said to run densely where it will.
    dense = [name for name, pattern in patterns.items() if pattern in ("3:4", "4:8", "2:8", "4:8 pairs")]
    findings = lint_file(path)
    assert [item for item in findings if item.rule == "sparsity"] == []
    assert {item.text.split(".weight_int8")[0] for item in findings if item.rule == "sparse-kernels"} == set(dense)
    assert len(sparse_products(path)) == len(patterns) - len(dense)

    # A stricter claim than the weights keep is found, layer by layer.
    stricter = {"1:4": "1:8", "2:4": "1:4", "3:4": "2:4", "4:8": "3:8", "2:8": "1:8"}
    stricter |= {"4:8 pairs": "2:8 pairs", "2:4 pairs": "2:8 pairs"}
    file, tensors = OnnxFile(path), read_tensors(tmp_path)
    for name, pattern in patterns.items():
        with pytest.raises(Broken, match=f"{name}: .* break {stricter[pattern]} along K"):
            sparse_weights(file, tensors, Expected(masks={name: stricter[pattern]}))
    claims = {name: stricter[pattern] for name, pattern in patterns.items()}
    broken = {item.text.split(".weight_int8")[0] for item in lint(file, claims) if item.rule == "sparsity"}
    assert broken == set(patterns)


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern", ["1:4", "4:8", "4:8 pairs"])
def test_every_criterion_gives_exactly_n_of_m(pattern: str, criterion: str) -> None:
    model = pruned(pattern, criterion)
    n, m, unit = parse_pattern(pattern)
    layers = [layer for _, layer in compressed_layers(model) if layer.weight_mask is not None]
    assert len(layers) == 8
    for layer in layers:
        assert layer.weight_mask is not None
        groups = layer.weight_mask.view(len(layer.weight), -1, m // unit, unit)
        assert bool((groups.sum((2, 3)) == n).all())
        assert torch.equal(groups.any(-1), groups.all(-1))


def test_pairs_need_even_counts_and_say_so() -> None:
    (problem,) = Prune.problems(Prune.Config(pattern="1:4 pairs"))
    assert problem.startswith("pattern: ") and "even N and M" in problem and "4:8 pairs" in problem
