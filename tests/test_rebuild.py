"""Models rebuilt from arch.json and model.safetensors are the saved ones bit for bit; bad folders are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from export_support import VIT, base_model, compressed, images, quantize_edit, standard_edits
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from act.edits import apply_edit
from act.errors import InputError
from act.rebuild import load_model_folder, save_model

KWARGS = {key: value for key, value in VIT.items() if key != "num_classes"}
SOURCE = {"name": "vit_tiny_patch16_224", "num_classes": 10, "kwargs": KWARGS}


def saved(folder: Path, source: dict[str, Any] | None = SOURCE) -> nn.Module:
    model = compressed(standard_edits())
    save_model(folder, model, source, standard_edits())
    return model


def edit_arch(folder: Path, **changes: Any) -> None:
    arch = json.loads((folder / "arch.json").read_text())
    (folder / "arch.json").write_text(json.dumps({**arch, **changes}))


def assert_same(a: nn.Module, b: nn.Module) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]), name
    with torch.no_grad():
        assert torch.equal(a(images()), b(images()))


@pytest.mark.parametrize("learn", ["fixed", "pact", "lsq"])
def test_rebuilt_bit_for_bit(tmp_path: Path, learn: str) -> None:
    edits = [standard_edits()[0], quantize_edit(["blocks.0.mlp.fc1", "head"], 4, 8, learn=learn, signed=False)]
    model = compressed(edits)
    save_model(tmp_path, model, SOURCE, edits)
    rebuilt = load_model_folder(tmp_path)
    assert not rebuilt.training
    assert_same(model, rebuilt)


def test_given_base_model_is_edited_in_place(tmp_path: Path) -> None:
    model = saved(tmp_path, source=None)
    with pytest.raises(InputError, match="pass that module"):
        load_model_folder(tmp_path)
    base = base_model(**VIT)
    assert load_model_folder(tmp_path, base) is base
    assert_same(model, base)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.register_buffer("view", self.a.bias.detach()[:2])

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))  # type: ignore[no-any-return]


def test_tied_tensors_are_stored_once(tmp_path: Path) -> None:
    model = Tied()
    save_model(tmp_path, model, None, [])
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["a.bias", "a.weight", "b.bias", "view"]
    rebuilt = load_model_folder(tmp_path, Tied())
    assert all(torch.equal(value, rebuilt.state_dict()[name]) for name, value in model.state_dict().items())


def test_missing_unknown_and_misshapen_tensors_are_all_named(tmp_path: Path) -> None:
    saved(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["head.bias"]
    tensors["extra"] = torch.zeros(1)
    tensors["cls_token"] = tensors["cls_token"].double()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError) as caught:
        load_model_folder(tmp_path)
    text = "\n".join(caught.value.problems)
    assert "head.bias: missing" in text
    assert "extra: the model has no such tensor" in text
    assert "cls_token: is float64 [1, 1, 48], the model wants float32 [1, 1, 48]" in text


@pytest.mark.parametrize("name", ["arch.json", "model.safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_truncated_files(tmp_path: Path, name: str, keep: float) -> None:
    saved(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(InputError, match=name):
        load_model_folder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema 2; this version reads 1"),
        ({"edits": [{"op": "explode"}]}, r"edits\[0\]: .*'explode' is unknown"),
        ({"edits": [{"op": "mask", "layers": ["nowhere"], "pattern": "2:4"}]}, "nowhere: the model has no such layer"),
        ({"edits": [{"op": "mask", "surprise": 1}]}, "'mask' cannot be applied: TypeError"),
        ({"edits": 3}, "edits: must be a list"),
        ({"base": {"name": "no_such_model"}}, "no model 'no_such_model'"),
        ({"base": {"name": "hf-hub:somebody/model"}}, "no model 'hf-hub:somebody/model'"),
        ({"base": {**SOURCE, "kwargs": {"checkpoint_path": "/tmp/x.pth"}}}, "checkpoint_path: not allowed"),
        ({"base": {**SOURCE, "kwargs": {"pretrained_cfg": "x"}}}, "pretrained_cfg: not allowed"),
        ({"base": {**SOURCE, "kwargs": {"depth": {"a": 1}}}}, "base.kwargs: must be"),
        ({"base": {**SOURCE, "num_classes": -1}}, "num_classes: -1"),
        ({"shared": {"head.weight": "elsewhere"}}, "lacks elsewhere"),
        ({"shared": ["head.weight"]}, "shared: must map"),
    ],
)
def test_bad_arch(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    saved(tmp_path)
    edit_arch(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        load_model_folder(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_model_folder(tmp_path / "none")


def test_an_edit_in_a_strategys_own_file_is_found_by_a_fresh_process(tmp_path: Path) -> None:
    edit = {"op": "exchange_activation", "layers": ["blocks.0.mlp.act"], "to": "relu"}
    model = base_model(**VIT)
    apply_edit(model, edit)
    save_model(tmp_path, model, SOURCE, [edit])
    code = f"from act.rebuild import load_model_folder; print(load_model_folder({str(tmp_path)!r}).blocks[0].mlp.act)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "ReLU()", done.stderr
