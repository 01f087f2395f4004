"""The packed file: models come back from it, other exporters work from it, damage is one clear line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from export_support import SIZE, VIT, base_model, compressed, images, linear_names, quantize_edit, standard_edits
from export_support import write_artifact
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from act.cli.main import main
from act.errors import InputError
from act.layers import compressed_layers
from act.rebuild import load_model_folder, load_packed_model, unique_tensors
from act.sparsity.masks import nm_mask
from act.storage.file import PACKED_FILE, read_packed, write_packed
from act.storage.pack import pack_tensors
from act.storage.sizes import size_report
from act.verify.folder import verify_folder, write_manifest

METADATA = {"recipe": "tiny", "preprocess": json.dumps({"input_size": list(SIZE)})}
LAYER = "blocks.1.mlp.fc1"


def pack(folder: Path, model: nn.Module, edits: list[dict[str, Any]]) -> Path:
    tensors, shared = unique_tensors(model.state_dict())
    write_packed(pack_tensors(folder / PACKED_FILE, tensors, edits, shared, METADATA).file)
    return folder / PACKED_FILE


def artifact(folder: Path, edits: list[dict[str, Any]] | None = None, **kwargs: Any) -> nn.Module:
    edits = edits or standard_edits()
    model = compressed(edits, **kwargs)
    write_artifact(folder, model, edits)
    pack(folder, model, edits)
    write_manifest(folder)
    return model


def only_packed(source: Path, target: Path) -> Path:
    target.mkdir()
    for name in ("arch.json", PACKED_FILE):
        shutil.copy(source / name, target / name)
    return target


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (name, one), (_, other) in zip(compressed_layers(a), compressed_layers(b), strict=True):
        assert torch.equal(one.effective_weight(), other.effective_weight()), name
        assert one.weight_mask is None or torch.equal(one.weight_mask, other.weight_mask), name
    with torch.no_grad():
        assert torch.equal(a(images()), b(images()))


def edits_of(bits: int, pattern: str | None, learn: str = "fixed", groups: int = 0) -> list[dict[str, Any]]:
    names = linear_names(base_model(**VIT))
    blocks = [name for name in names if name.startswith("blocks.")]
    more = {"weight_group_size": groups} if groups else {}
    mask = [{"op": "mask", "layers": blocks, "pattern": pattern}] if pattern else []
    inside = quantize_edit(blocks, bits, 8, learn=learn, **more)
    edge = quantize_edit([name for name in names if name not in blocks], bits, 0, learn=learn)
    return [*mask, {"op": "quantize", "layers": inside["layers"] | edge["layers"]}]
