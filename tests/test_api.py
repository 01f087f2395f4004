"""The Python interface: its result is the command's, and the caller's objects are used as they are."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from export_support import DIGITS
from safetensors.torch import save_file
from torch import nn

import act
from act import AutoCompression, load
from act.cli.main import main
from act.errors import InputError
from act.models import logits
from act.recipe.load import load_recipe
from act.run.folder import RunFolder
from act.run.report import read_report

GOAL = DIGITS + "target: {max_drop: 0.0, bytes: 1}\n"
PTQ: dict[str, Any] = {"name": "ptq", "QuantPost": {"images": 16}, "export": {"benchmark": False}}


class OtherModel(nn.Module):
    """No timm model: a patch embedding and one block of plain layers, logits in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 8, stride=8)
        self.fc1, self.fc2, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 4)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        return {"logits": self.head((tokens + self.fc2(self.fc1(tokens).relu())).mean(1))}


def noise(batches: int = 2) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"image": torch.randn(8, 3, 16, 16, generator=generator), "label": torch.arange(8) % 4} for _ in range(batches)
    ]


def test_importing_the_package_does_not_load_torch() -> None:
    code = "import sys, act; print(act.__version__, 'torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.split() == [act.__version__, "False"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        act.nothing  # noqa: B018


def test_the_command_and_the_class_give_the_same_result(tmp_path: Path) -> None:
    recipe = tmp_path / "digits.yaml"
    recipe.write_text(GOAL)
    kwargs = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 10}
    save_file(timm.create_model("vit_tiny_patch16_224", **kwargs).state_dict(), tmp_path / "model.safetensors")
    code = main(["run", str(recipe), "--dir", str(tmp_path / "command")])
    result = AutoCompression(config=recipe, save_dir=tmp_path / "class").compress()
    command = read_report(RunFolder(tmp_path / "command"))
    assert command is not None
    assert code == result.exit_code == 3  # one byte cannot be reached; the file is there nevertheless
    assert result.status == command["status"] == "missed"
    measured = ("seconds", "peak_rss_mb", "latency", "speedup", "environment")

    def comparable(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: comparable(item) for key, item in value.items() if key not in measured}
        return [comparable(item) for item in value] if isinstance(value, list) else value

    assert comparable(result.report) == comparable(command)
    assert result.onnx.read_bytes() == (tmp_path / "command" / "artifact" / "model.onnx").read_bytes()
    frozen = load_recipe(result.folder / "artifact" / "recipe.yaml")
    assert frozen.results["artifacts"][0]["sha256"] == result.report["artifacts"][0]["sha256"]
    model = load(result.folder)
    again = load(result.folder / "artifact")
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(images), again(images))


def test_a_callers_module_loaders_and_metric_are_used_and_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = OtherModel().train()
    before = copy.deepcopy(model.state_dict())
    scored: list[str] = []

    def metric(candidate: nn.Module) -> float:
        scored.append(type(candidate).__name__)
        assert not candidate.training
        return float(logits(candidate(noise()[0]["image"])).sum())

    compression = AutoCompression(
        model,
        PTQ | {"target": {"max_drop": 100.0}},
        train_dataloader=noise(),
        eval_callback=metric,
        save_dir=tmp_path / "run",
    )
    result = compression.compress()
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert scored == ["OtherModel", "OtherModel", "ExportedModule"]  # the original, the compressed, its file
    assert result.status == "met"
    assert {"metric"} <= set(result.report["baseline"]) & set(result.report["artifacts"][0])
    with pytest.raises(InputError, match="pass that module"):
        load(result.folder)
    rebuilt = load(result.folder, OtherModel())
    assert logits(rebuilt(noise()[0]["image"])).shape == (8, 4)


def test_labelled_batches_give_top1(tmp_path: Path) -> None:
    loaders = {"train_dataloader": noise(), "eval_dataloader": noise()}
    result = AutoCompression(OtherModel(), PTQ, **loaders, save_dir=tmp_path / "run").compress()
    assert 0 <= result.report["artifacts"][0]["top1"] <= 100
    assert result.report["artifacts"][0]["agreement"] > 80
    assert result.report["data"]["val_images"] == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"QuantPost": None, "QuantAware": {}}, r"QuantAware: trains, and has nothing to learn.*Distillation: \{\}"),
        ({"target": {"max_drop": 1.0}}, r"target\.max_drop: 1\.0 cannot be judged without a validation set"),
        ({"export": {"formats": ["onnx", "coreml"]}}, r"export\.formats: coreml; allowed: onnx"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = {key: value for key, value in (PTQ | changes).items() if value is not None}
    images = [batch["image"] for batch in noise()]
    with pytest.raises(InputError, match=message):
        AutoCompression(OtherModel(), config, train_dataloader=images, save_dir=tmp_path / "run").compress()
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_loaders_and_files_of_the_recipe_do_not_mix() -> None:
    config = PTQ | {"data": {"val": "builtin:digits.tar/val"}}
    with pytest.raises(InputError, match=r"eval_dataloader: missing, and data\.val"):
        AutoCompression(OtherModel(), config, train_dataloader=noise())


def test_a_name_a_checkpoint_or_a_module_is_a_model(tmp_path: Path) -> None:
    recipe = tmp_path / "digits.yaml"
    recipe.write_text(GOAL.replace("model.safetensors", "builtin:digits_vit.safetensors"))
    assert AutoCompression("deit_tiny_patch16_224", recipe).recipe.model.checkpoint is None
    assert AutoCompression("deit_tiny_patch16_224", recipe).recipe.model.name == "deit_tiny_patch16_224"
    other = AutoCompression(tmp_path / "mine.safetensors", recipe).recipe.model
    assert (other.name, other.checkpoint) == ("vit_tiny_patch16_224", str(tmp_path / "mine.safetensors"))
    module = timm.create_model("test_vit")
    assert AutoCompression(module, recipe).model is module


def test_a_wrong_origin_metric_stops_the_run(tmp_path: Path) -> None:
    config = PTQ | {"TrainConfig": {"origin_metric": 99.0}}
    loaders = {"train_dataloader": noise(), "eval_dataloader": noise()}
    with pytest.raises(InputError, match=r"the original scores top1 .* not 99"):
        AutoCompression(OtherModel(), config, **loaders, save_dir=tmp_path / "run").compress()


def test_a_callback_that_returns_no_number_is_refused(tmp_path: Path) -> None:
    compression = AutoCompression(
        OtherModel(), PTQ, train_dataloader=noise(), eval_callback=lambda model: "good", save_dir=tmp_path / "run"
    )
    with pytest.raises(InputError, match="eval_callback: returned str"):
        compression.compress()
