"""Faults while a model trains: each ends in one message, and what was saved goes on to the same bits."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from act.context import Context
from act.data.bundle import DataBundle
from act.errors import TrainingError
from act.recipe.load import read_recipe, stage_train_config
from act.recipe.schema import Recipe, TrainConfig
from act.run.stop import StopAfterStep, Stopped, sigterm_raises
from act.strategies.base import Objective
from act.train.guard import training_fault
from act.train.recover import recover
from act.train.task import TaskLoss

STEPS = 9


class Images(Dataset[tuple[Tensor, int]]):
    """32 images of noise; `fault(index)` is called in whichever process reads one."""

    def __init__(self, fault: Callable[[int], None] | None = None) -> None:
        self.images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(5))
        self.fault = fault

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.fault is not None:
            self.fault(index)
        return self.images[index], index % 5


def train(
    folder: Path,
    objective: Objective | None = None,
    log: Callable[..., None] | None = None,
    fault: Callable[[int], None] | None = None,
    workers: int = 0,
    evaluate: Callable[[nn.Module], float] | None = None,
    **fields: Any,
) -> dict[str, Tensor]:
    """The weights after 9 steps with a checkpoint every second one."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=5
    )
    bundle = DataBundle.from_loaders(DataLoader(Images(fault), batch_size=8, num_workers=workers))
    recipe = Recipe()
    recipe.data.batch_size = 8
    ctx = Context(recipe=recipe, input_size=(3, 32, 32), data=bundle, log=log or Context.log)
    cfg = TrainConfig(**{"train_iter": STEPS, "save_iter": 2, "logging_iter": 1, "learning_rate": 1e-3, **fields})
    result = recover(model, None, [objective or TaskLoss()], cfg, ctx, folder, evaluate)
    assert result.steps == STEPS
    return model.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return train(tmp_path_factory.mktemp("whole"))


class Failing(TaskLoss):
    """The task's loss, which raises `error` in its `at`-th step."""

    def __init__(self, error: BaseException, at: int) -> None:
        super().__init__()
        self.error, self.left = error, at

    def losses(self, images: Tensor, labels: Tensor | None, output: Tensor) -> dict[str, Tensor]:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return super().losses(images, labels, output)


def no_host_memory() -> BaseException:
    """What torch raises on a CPU, from torch itself."""
    try:
        torch.empty(10**15)
    except RuntimeError as error:
        return error
    raise AssertionError("there cannot be that much memory")


FAULTS = {
    "memory": (no_host_memory, r"out of memory \(.*can't allocate memory.*\) with batches of 8 images"),
    "GPU memory": (
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
        r"out of memory \(CUDA out of memory.*--force TrainConfig\.stages\.train\.batch_size=4 "
        r"TrainConfig\.stages\.train\.accumulation=2 makes steps of as many images in half the memory",
    ),
    "GPU": (  # simulated: there is none to pull out of the machine
        lambda: torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors might be ..."),
        r"the GPU failed \(CUDA error: unspecified launch failure\).*the same command goes on",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_failing_machine_leaves_a_state_to_go_on_from(name: str, tmp_path: Path, whole: dict[str, Tensor]) -> None:
    make, words = FAULTS[name]
    with pytest.raises(TrainingError, match=words) as caught:
        train(tmp_path, Failing(make(), at=6))
    message = str(caught.value)
    assert message.startswith("training stopped at step 6: ") and len(message.splitlines()) == 1
    assert message.endswith(f"the last good state is {tmp_path / 'step-00000004'}")
    assert caught.value.exit_code == 1
    same(whole, train(tmp_path))


def test_the_settings_that_a_full_memory_is_answered_with_can_be_given() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory.")
    message = str(training_fault(error, 1, TrainConfig(batch_size=64, accumulation=3), None, "Prune"))
    words = re.findall(r"TrainConfig\.\S+=\d+", message)
    recipe = read_recipe("quickstart", words).recipe
    changed, other = (stage_train_config(recipe, name) for name in ("Prune", "QuantAware"))
    assert (changed.batch_size, changed.accumulation) == (32, 6) and changed.learning_rate == 1e-3
    assert (other.batch_size, other.accumulation) == (None, 1)  # finished stages keep their settings


def test_other_errors_of_a_step_are_not_explained_away(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        train(tmp_path, Failing(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), at=1))
    assert not isinstance(caught.value, TrainingError) and caught.value.__cause__ is None


def test_a_batch_of_one_image_cannot_be_halved(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"a batch is one image already.*no state had been saved yet"):
        train(tmp_path, Failing(MemoryError(), at=1), batch_size=1)


def test_nan_leaves_a_state_to_go_on_from(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    class Spoiled(Failing):
        def losses(self, images: Tensor, labels: Tensor | None, output: Tensor) -> dict[str, Tensor]:
            found = TaskLoss.losses(self, images, labels, output)
            self.left -= 1
            return {"task": found["task"] * float("nan")} if self.left == 0 else found

    with pytest.raises(TrainingError, match="step 6: the loss task is not finite"):
        train(tmp_path, Spoiled(ValueError(), at=6))
    same(whole, train(tmp_path))


def test_a_worker_that_is_killed_is_named_and_the_run_goes_on_without(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    parent = os.getpid()
    reads = multiprocessing.Value("i", 0)

    def die(index: int) -> None:
        if os.getpid() == parent:
            return
        with reads.get_lock():
            reads.value += 1
        if reads.value == 60:  # 8 are read for a look at the first batch
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(TrainingError, match=r"a data loading worker .*--force data\.workers=0 .*keeps") as caught:
        train(tmp_path, fault=die, workers=1)
    assert f"the last good state is {tmp_path / 'step-0000000'}" in str(caught.value)
    same(whole, train(tmp_path))


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT as in the foreground; tests that run in the background have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_obeyed_when_the_step_is_saved(
    number: signal.Signals, tmp_path: Path, whole: dict[str, Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    def log(event: str, message: str = "", **fields: Any) -> None:
        if event == "train_step" and fields["step"] == 3:
            os.kill(os.getpid(), number)

    with sigterm_raises(), pytest.raises(Stopped, match=r"in train, step 3 of 9 is saved") as caught:
        train(tmp_path, log=log, save_iter=100)
    assert caught.value.exit_code == 128 + number
    assert "this step is finished and saved first" in capfd.readouterr().err
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000003"]
    same(whole, train(tmp_path, save_iter=100))


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped), StopAfterStep() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the second signal must have raised")
    with pytest.raises(Stopped), StopAfterStep():
        os.kill(os.getpid(), signal.SIGINT)  # nobody looks, so that leaving raises
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_forked_child_ends_by_sigterm_as_it_would_by_itself() -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()

    def wait() -> None:
        ready.set()
        time.sleep(60)

    with sigterm_raises():
        child = context.Process(target=wait)
        child.start()
        assert ready.wait(60)
        child.terminate()
        child.join(60)
    assert child.exitcode == -signal.SIGTERM


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopAfterStep() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.number is None
    finally:
        signal.signal(signal.SIGINT, before)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def altered(path: Path) -> None:
    record = json.loads(path.read_text())
    record["seconds"] += 1
    path.write_text(json.dumps(record))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a flipped bit": lambda folder: flip(folder / "model.safetensors"),
    "a file cut short": lambda folder: os.truncate(folder / "optimizer.safetensors", 100),
    "an empty file": lambda folder: os.truncate(folder / "random.safetensors", 0),
    "a missing file": lambda folder: (folder / "optimizer.safetensors").unlink(),
    "an altered record": lambda folder: altered(folder / "state.json"),
    "a torn record": lambda folder: os.truncate(folder / "state.json", 50),
    "no record": lambda folder: (folder / "state.json").unlink(),
    "other best weights": lambda folder: flip(folder.parent / "best-00000006.safetensors"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    name: str, tmp_path: Path, whole_with_best: dict[str, Tensor]
) -> None:
    best = {"eval_iter": 3, "select": "best", "evaluate": scores()}
    with pytest.raises(TrainingError):
        train(tmp_path, Failing(MemoryError(), at=7), **best)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000004", "step-00000006"]
    DAMAGE[name](tmp_path / "step-00000006")
    said: list[str] = []

    def log(event: str, message: str = "", **fields: Any) -> None:
        said.extend([message] if event in ("warning", "train_resumed") else [])

    found = train(tmp_path, log=log, **best)
    assert len(said) == 2 and ("best-" if name.startswith("other") else "step-") + "00000006" in said[0]
    assert said[0].endswith("this checkpoint is passed over") and said[1].endswith("continuing after step 4")
    same(whole_with_best, found)


def scores() -> Callable[[nn.Module], float]:
    """A metric that is best at step 6 of 3, 6 and 9, also when a training that goes on asks again."""
    seen: dict[float, float] = {}

    def evaluate(model: nn.Module) -> float:
        mark = float(next(model.parameters()).detach().double().sum())
        return seen.setdefault(mark, [1.0, 3.0, 2.0][len(seen)])

    return evaluate


@pytest.fixture(scope="module")
def whole_with_best(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return train(tmp_path_factory.mktemp("best"), eval_iter=3, select="best", evaluate=scores())


def test_without_a_whole_checkpoint_training_starts_anew(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    with pytest.raises(TrainingError):
        train(tmp_path, Failing(MemoryError(), at=6))
    for folder in tmp_path.glob("step-*"):
        flip(folder / "model.safetensors")
    said: list[str] = []
    found = train(
        tmp_path, log=lambda event, message="", **fields: said.append(message) if event == "warning" else None
    )
    assert len(said) == 3 and said[2].endswith("no checkpoint is whole; training starts from its beginning")
    same(whole, found)
