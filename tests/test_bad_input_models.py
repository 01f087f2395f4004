"""Checkpoints, models, loaders and metrics that cannot be used: one line before the run begins, and nothing is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from bad_input_support import KWARGS, NAME, make_place, missing, refused, state
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from act import AutoCompression
from act.cli.main import main
from act.errors import InputError

PTQ: dict[str, Any] = {"name": "ptq", "QuantPost": {"images": 16}, "export": {"benchmark": False}}
NOT_READ = ["not a readable checkpoint", "allowed: .safetensors, or a torch file of plain tensors"]
# The file, and parts of the line that comes back
CHECKPOINTS: list[tuple[str, list[str]]] = [
    ("seven.safetensors", ["does not fit the model: head.weight is [7, 32], the model wants [2, 32]", "num_classes"]),
    ("deeper.safetensors", ["has unknown 12 tensors (blocks.1.attn.proj.bias", "check model.name"]),
    ("other.safetensors", ["does not fit the model: has unknown", "the model wants [1, 5, 32]"]),
    ("nan.safetensors", ["head.weight has NaN or infinite values"]),
    ("ints.safetensors", ["head.weight is torch.int64, the model wants torch.float32"]),
    ("cut.safetensors", NOT_READ),
    ("bad.safetensors", NOT_READ),
    ("zero.safetensors", NOT_READ),
    ("cut.pt", NOT_READ),
    ("bad.pt", NOT_READ),
    ("zero.pt", NOT_READ),
    ("text.txt", NOT_READ),
    ("good.tar", NOT_READ),
    ("code.pt", [*NOT_READ, "could run code, and is not opened"]),
    ("code.bin", [*NOT_READ, "could run code, and is not opened"]),
    ("module.pt", NOT_READ),
    ("list.pt", ["holds no mapping of names to tensors; save model.state_dict()"]),
    ("numbers.pt", ["holds no mapping of names to tensors"]),
    ("folder", ["model.checkpoint: folder: a folder; allowed: a .safetensors file"]),
    ("nowhere.pt", ["model.checkpoint: nowhere.pt: no such file"]),
]


class Small(nn.Module):
    """A patch embedding and one block of plain layers; `answer` turns its logits into what the forward returns."""

    def __init__(self, answer: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 8, stride=8)
        self.fc1, self.fc2, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 4)
        self.answer = answer

    def forward(self, images: Tensor) -> Any:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        return self.answer(self.head((tokens + self.fc2(self.fc1(tokens).relu())).mean(1)))


class NoLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) * self.scale


class TwoInputs(Small):
    def forward(self, images: Tensor, other: Tensor) -> Any:  # type: ignore[override]
        return super().forward(images)


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.LazyLinear(4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))  # type: ignore[no-any-return]


def fails(logits: Tensor) -> Any:
    raise RuntimeError("first line\nsecond line")


LOGITS = "allowed: a tensor of class logits, a tuple of such, or a dict with the key 'logits'"
MODELS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "no linear layer": (NoLinear, ["QuantPost: no layer of this model would be changed", "leave the section out"]),
    "text as output": (lambda: Small(lambda logits: "x"), ["model: its forward returns str", LOGITS]),
    "nothing as output": (lambda: Small(lambda logits: None), ["its forward returns NoneType", LOGITS]),
    "an empty dict": (lambda: Small(lambda logits: {}), ["its forward returns dict", LOGITS]),
    "a dict with another key": (lambda: Small(lambda logits: {"y": logits}), ["its forward returns dict", LOGITS]),
    "an empty tuple": (lambda: Small(lambda logits: ()), ["its forward returns tuple", LOGITS]),
    "a tuple with text": (lambda: Small(lambda logits: (logits, "x")), ["its forward returns tuple", LOGITS]),
    "one axis": (lambda: Small(lambda logits: logits[:, 0]), ["returns [1] float32 for one image", "[batch, classes]"]),
    "four axes": (lambda: Small(lambda logits: logits[..., None, None]), ["returns [1, 4, 1, 1] float32"]),
    "class indices": (
        lambda: Small(lambda logits: logits.argmax(1, keepdim=True)),
        ["returns [1, 1] int64", "floating"],
    ),
    "NaN": (lambda: Small(lambda logits: logits * float("nan")), ["model: its logits are NaN or infinite"]),
    "an error": (lambda: Small(fails), ["model: cannot take images of [3, 16, 16]: first line; check data.input_size"]),
    "two inputs": (TwoInputs, ["cannot take images of [3, 16, 16]", "missing 1 required positional argument: 'other'"]),
    "lazy parameters": (Lazy, ["model: has lazy parameters without a shape; call its forward once"]),
    "a class": (lambda: Small, ["model: the class Small; pass an nn.Module"]),
    "a number": (lambda: 5, ["model: int; pass an nn.Module, a timm model name"]),
    "an unknown name": (lambda: "vit_tinny_patch16_224", ["did you mean vit_tiny_patch16_224"]),
    "no name at all": (lambda: None, ["model.name: missing"]),
}
X = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
ZEROS = torch.zeros(8, dtype=torch.long)


class Nothing(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter([])


# What is passed as train_dataloader, and parts of the line; the second half is found only while the run reads on
LOADERS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "no batches": (list, ["train_dataloader: it yields no batch at all"]),
    "no samples": (lambda: DataLoader(TensorDataset(X[:0])), ["train_dataloader: it yields no batch at all"]),
    "an empty stream": (lambda: DataLoader(Nothing()), ["train_dataloader: it yields no batch at all"]),
    "empty batches": (lambda: [X[:0], X[:0]], ["train_dataloader: it yields no batch at all"]),
    "a generator": (lambda: (batch for batch in [X]), ["generator can be read only once"]),
    "a number": (lambda: 5, ["train_dataloader: int is no loader; pass a DataLoader"]),
    "a path": (lambda: "photos", ["train_dataloader: str is no loader"]),
    "one tensor": (lambda: X, ["train_dataloader: Tensor is no loader"]),
    "text batches": (lambda: ["a", "b"], ["train_dataloader: a batch is str; accepted are a tensor"]),
    "no batch in it": (lambda: [None], ["train_dataloader: a batch is NoneType; accepted are"]),
    "three parts": (lambda: [(X, X, X)], ["train_dataloader: a batch is tuple of 3"]),
    "one image": (lambda: [X[0]], ["not four-dimensional; images must be a tensor [B, C, H, W]"]),
    "bytes": (lambda: [X.to(torch.uint8)], ["images are tensor [8, 3, 16, 16] uint8", "normalised"]),
    "NaN": (lambda: [X * float("nan")], ["train_dataloader: images are", "NaN or infinite values"]),
    "infinity": (lambda: [X * float("inf")], ["NaN or infinite values"]),
    "labels of floats": (lambda: [(X, X[:, 0, 0, 0])], ["labels are tensor [8] float32 beside 8 images"]),
    "too few labels": (lambda: [(X, ZEROS[:3])], ["labels are tensor [3] int64 beside 8 images"]),
    "negative labels": (lambda: [(X, ZEROS - 1)], ["a label is -1; allowed: class indices, 0 or more"]),
    "labels beyond the head": (lambda: [(X, ZEROS + 9)], ["class index 9, but the model's head has only 4 outputs"]),
    "another size": (lambda: [torch.randn(8, 3, 24, 24)], ["model: cannot take images of [3, 24, 24]"]),
    "one channel": (lambda: [X[:, :1]], ["model: cannot take images of [1, 16, 16]"]),
    "sides of 0": (lambda: [torch.randn(8, 3, 0, 0)], ["model: cannot take images of [3, 0, 0]"]),
}
LATER: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "the size changes": (
        lambda: [X, torch.randn(8, 3, 24, 24)],
        ["train_dataloader: a batch has images of [3, 24, 24], the first one of [3, 16, 16]"],
    ),
    "the channels change": (lambda: [X, X[:, :1]], ["a batch has images of [1, 16, 16]"]),
    "labels vanish": (lambda: [(X, ZEROS), X], ["train_dataloader: some batches have labels and others none"]),
    "a label grows": (lambda: [(X, ZEROS), (X, ZEROS + 9)], ["train_dataloader: class index 9, but the model's head"]),
    "NaN": (lambda: [X, X * float("nan")], ["train_dataloader: images are", "NaN or infinite values"]),
    "NaN in a worker process": (
        lambda: DataLoader(torch.cat([X, X * float("nan")]), batch_size=8, num_workers=1),
        ["train_dataloader: images are", "NaN or infinite values"],
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=4, **KWARGS)


def refusal(folder: Path, began: bool | None = False, **arguments: Any) -> str:
    """The line with which AutoCompression refuses; without a run folder unless the run `began` (None: it may)."""
    with pytest.raises(InputError) as caught:
        AutoCompression(**{"config": PTQ, "save_dir": folder, **arguments}).compress()
    (problem,) = caught.value.problems
    assert "\n" not in problem and len(problem) < 900
    assert began is None or folder.exists() is began
    return problem


@pytest.mark.parametrize(("name", "parts"), CHECKPOINTS, ids=[name for name, _ in CHECKPOINTS])
def test_checkpoints(
    name: str, parts: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    for verb in ("run", "plan"):
        line = refused(place, [verb, "ok.yaml", f"model.checkpoint={name}"], capsys)
        assert not missing(["model.checkpoint: ", *parts], line)
    assert not (place / "it-ran").exists()


def test_half_precision_is_no_mistake(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({name: tensor.half() for name, tensor in state().items()}, tmp_path / "half.safetensors")
    assert main(["plan", str(place / "ok.yaml"), f"model.checkpoint={tmp_path / 'half.safetensors'}"]) == 0


@pytest.mark.parametrize("case", MODELS)
def test_models(case: str, tmp_path: Path) -> None:
    make, parts = MODELS[case]
    assert not missing(parts, refusal(tmp_path / "run", model=make(), train_dataloader=[X]))


def test_a_forward_that_depends_on_the_pixels(tmp_path: Path) -> None:
    model = Small(lambda logits: logits * 2 if logits.sum() > 0 else logits)
    parts = ["model: the model cannot be traced to ONNX", "whatever the pixels are"]
    assert not missing(parts, refusal(tmp_path / "run", began=True, model=model, train_dataloader=[X]))


@pytest.mark.parametrize("answer", [lambda logits: {"logits": logits}, lambda logits: (logits, logits)])
def test_a_dict_or_tuple_of_logits_is_no_mistake(answer: Callable[[Tensor], Any], tmp_path: Path) -> None:
    result = AutoCompression(Small(answer), PTQ, train_dataloader=[X], save_dir=tmp_path / "run").compress()
    assert result.status == "no_target"


@pytest.mark.parametrize("case", LOADERS)
def test_loaders(case: str, tmp_path: Path) -> None:
    make, parts = LOADERS[case]
    assert not missing(parts, refusal(tmp_path / "run", model=vit(), train_dataloader=make()))


@pytest.mark.parametrize("case", LATER)
def test_loaders_that_change(case: str, tmp_path: Path) -> None:
    make, parts = LATER[case]
    assert not missing(parts, refusal(tmp_path / "run", began=None, model=vit(), train_dataloader=make()))


def test_a_validation_loader_that_changes(tmp_path: Path) -> None:
    parts = ["eval_dataloader: a batch has images of [3, 24, 24]"]
    loaders = {"train_dataloader": [X], "eval_dataloader": [X, torch.randn(8, 3, 24, 24)]}
    assert not missing(parts, refusal(tmp_path / "run", began=None, model=vit(), **loaders))


def test_one_sample_is_enough(tmp_path: Path) -> None:
    result = AutoCompression(vit(), PTQ, train_dataloader=DataLoader(TensorDataset(X[:1])), save_dir=tmp_path / "run")
    assert result.compress().status == "no_target"


@pytest.mark.parametrize(
    ("callback", "parts"),
    [
        (lambda model: None, ["eval_callback: returned NoneType; it must return one number"]),
        (lambda model: torch.ones(3), ["eval_callback: returned Tensor"]),
        (lambda model: float("nan"), ["eval_callback: returned nan; it must return a finite number"]),
    ],
)
def test_metrics(callback: Any, parts: list[str], tmp_path: Path) -> None:
    line = refusal(tmp_path / "run", began=True, model=vit(), train_dataloader=[X], eval_callback=callback)
    assert not missing(parts, line)


def test_a_metric_that_is_no_function(tmp_path: Path) -> None:
    assert not missing(["eval_callback: int; pass a function"], refusal(tmp_path / "run", model=vit(), eval_callback=5))


@pytest.mark.parametrize("config", [5, None, ["QuantPost"], "nowhere.yaml"])
def test_configs(config: Any, tmp_path: Path) -> None:
    part = "nowhere.yaml: no such recipe file" if isinstance(config, str) else "config: "
    assert not missing([part], refusal(tmp_path / "run", model=vit(), train_dataloader=[X], config=config))


def test_a_file_in_place_of_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    assert not missing(["cannot be written"], refusal(tmp_path / "run", began=True, model=vit(), train_dataloader=[X]))
    assert (tmp_path / "run").read_text() == "x"
