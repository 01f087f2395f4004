"""`analyze`: multiply-accumulates and bit operations against formulas, by block and kind."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
from export_support import SIZE, VIT, base_model, compressed, linear_names, quantize_edit, standard_edits
from test_structure import torchvision_vit
from torch import nn

from act.analysis import Analysis, analyze
from act.cli.main import main
from act.rebuild import save_model
from act.run.baseline import count_macs

ORDER = ["qkv", "qk^T", "av", "proj", "fc1", "fc2"]


def sums(found: Analysis, key: str = "kind") -> dict[str, int]:
    totals: Counter[str] = Counter()
    for product in found.products:
        totals[getattr(product, key)] += product.macs
    return dict(totals)


def test_vit_base_matches_the_formula() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224")
    found = analyze(model, (3, 224, 224))
    tokens, width, depth = 197, 768, 12
    linear = depth * tokens * width * width
    attention = depth * tokens * tokens * width
    expected = {"patch_embed": 196 * width * width, "qkv": 3 * linear, "qk^T": attention, "av": attention}
    expected |= {"proj": linear, "fc1": 4 * linear, "fc2": 4 * linear, "head": width * 1000}
    assert sums(found) == expected
    assert found.blocks == [f"blocks.{index}" for index in range(depth)]
    assert found.params == 86_567_656
    inside = sum(product.macs for product in found.products if product.block)
    # Of all products of the blocks, those of the attention itself included; without these it would be 91.7 %.
    share = (expected["qkv"] + expected["fc1"] + expected["fc2"]) / inside
    assert share == pytest.approx(0.879, abs=0.001)


def test_kinds_do_not_depend_on_names() -> None:
    class Unusual(nn.Module):
        """Separate projections, gated MLP, products in the block itself."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(16, 16) for _ in range(4))
            self.gate, self.up, self.down = nn.Linear(16, 40), nn.Linear(16, 40), nn.Linear(40, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.d((self.a(x) @ self.b(x).transpose(1, 2)).softmax(-1) @ self.c(x))
            return x + self.down(self.gate(x).sigmoid() * self.up(x))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.parts = nn.Conv2d(3, 16, 8, stride=8), nn.ModuleList([Unusual(), Unusual()])
            self.between, self.last = nn.Linear(16, 16), nn.Linear(16, 7)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            x = self.parts[0](self.stem(x).flatten(2).transpose(1, 2))
            return {"logits": self.last(self.parts[1](self.between(x)).mean(1))}

    found = analyze(Model(), (3, 16, 16))
    kinds = [product.kind for product in found.products if product.block == "parts.1"]
    assert kinds == ["qkv", "qkv", "qk^T", "qkv", "av", "proj", "fc1", "fc1", "fc2"]
    outside = [(product.module, product.kind) for product in found.products if not product.block]
    assert outside == [("stem", "patch_embed"), ("between", "other"), ("last", "head")]


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "deit_tiny_distilled_patch16_224"])
def test_other_families(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    found = analyze(model, (3, 224, 224))
    for block in found.blocks:
        assert [product.kind for product in found.products if product.block == block] == ORDER
    assert len(found.blocks) == 12
    heads = [product.module for product in found.products if product.kind == "head"]
    assert heads == (["head.fc"] if name.startswith("swin") else ["head", "head_dist"])
    assert sum(product.params for product in found.products) < found.params


def test_blocks_of_torchvision() -> None:
    found = analyze(torchvision_vit(), (3, 32, 32))
    kinds = ["qkv", "qk^T", "av", "proj", "fc1", "fc2"]
    expected = [(f"encoder.layers.encoder_layer_{block}", kind) for block in (0, 1) for kind in kinds]
    assert [(p.block, p.kind) for p in found.products] == [("", "patch_embed"), *expected, ("", "head")]


def test_bits_and_density_of_a_compressed_model() -> None:
    names = linear_names(base_model(**VIT))
    attentions = ["blocks.0.attn", "blocks.1.attn"]
    edits = [*standard_edits()[:1], quantize_edit(names, weight_bits=4)]
    edits.append({"op": "quantize_matmul", "layers": attentions, "activation_bits": 8})
    before, after = analyze(base_model(**VIT), SIZE), analyze(compressed(edits), SIZE)
    assert [product.macs for product in before.products] == [product.macs for product in after.products]
    assert before.macs == after.macs == count_macs(base_model(**VIT), SIZE)
    for old, new in zip(before.products, after.products, strict=True):
        assert old.bops == 1024 * old.macs and old.kind == new.kind
        if new.weighted:
            assert new.bits == (8, 4) and new.density == (0.5 if new.block else 1.0)
        else:
            assert new.bits == (8, 8)
        assert new.bops == new.macs * new.bits[0] * new.bits[1] * new.density


def test_time_is_that_of_all_operators() -> None:
    found = analyze(base_model(**VIT), SIZE, repeats=2)
    assert all(product.seconds is not None and product.seconds > 0 for product in found.products)
    assert sum(found.rest.values()) > 0
    assert analyze(base_model(**VIT), SIZE).products[0].seconds is None


def test_run_folder_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edits = standard_edits()
    model = compressed(edits)
    source = {"name": "vit_tiny_patch16_224", "kwargs": {k: v for k, v in VIT.items() if k != "num_classes"}}
    artifact = tmp_path / "run" / "artifact"
    save_model(artifact, model, {**source, "num_classes": VIT["num_classes"]}, edits)
    (artifact / "preprocess.json").write_text(json.dumps({"input_size": list(SIZE)}))
    assert main(["analyze", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["compressed"]["bops"] < 0.1 * found["original"]["bops"]
    for state in ("original", "compressed"):
        for key in ("kinds", "blocks"):
            assert sum(row["macs"] for row in found[state][key]) == found[state]["macs"]
            assert sum(row["share"] for row in found[state][key]) == pytest.approx(100, abs=0.1)
    assert main(["analyze", str(tmp_path / "run"), "--time"]) == 0
    printed = capsys.readouterr().out
    assert "compressed / original" in printed and "by block" in printed and "qk^T" in printed and "ms" in printed
    (artifact / "preprocess.json").unlink()
    assert main(["analyze", str(tmp_path / "run")]) == 2
    assert main(["analyze", str(tmp_path / "run"), "data.workers=0"]) == 2
    assert main(["analyze", "vit_tiny_patch16_22"]) == 2
    errors = capsys.readouterr().err
    assert "preprocess.json" in errors and "leave key=value out" in errors and "did you mean" in errors
