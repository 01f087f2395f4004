"""Parts of the training loop: learning rate, parameter groups, guard, state, random numbers, messages."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from act.context import Context
from act.data.bundle import DataBundle
from act.errors import InputError, TrainingError
from act.recipe.schema import Recipe, TrainConfig
from act.train.guard import check_finite
from act.train.launch import make_accelerator
from act.train.optim import clip_gradients, make_optimizer, parameter_groups, schedule_factor, set_learning_rate
from act.train.progress import Bar, Meter, by_kind, clock, describe
from act.train.recover import total_steps
from act.train.rng import OwnRandom, get_random, pack, seed_everything, set_random, unpack
from act.train.state import TrainState, load_state, save_state, save_tensors
from act.train.stream import batch_stream, batches_per_epoch


def rates(steps: int = 20, **fields: Any) -> list[float]:
    cfg = TrainConfig(**fields)
    return [schedule_factor(step, steps, cfg) for step in range(1, steps + 1)]


def test_cosine_follows_its_formula() -> None:
    factors = rates(learning_rate=1e-3, min_learning_rate=1e-4, warmup_iter=4)
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    expected = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * t / 16)) for t in range(16)]
    assert factors[4:] == pytest.approx(expected)
    assert min(factors[4:]) > 0.1


def test_linear_and_constant() -> None:
    assert rates(4, scheduler="linear") == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert rates(4, scheduler="constant", warmup_iter=1) == pytest.approx([0.5, 1.0, 1.0, 1.0])
    assert rates(3, warmup_iter=9) == pytest.approx([0.25, 0.5, 0.75])  # shorter than its warm-up


def test_groups_are_disjoint_and_complete() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=3)
    scale = nn.Parameter(torch.ones(()))
    model.blocks[0].scale = scale
    extra = [nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))]
    model.head.weight.requires_grad_(False)
    cfg = TrainConfig(learning_rate=1e-3, weight_decay=0.05, range_learning_rate=1e-2, range_weight_decay=0.3)
    optimizer = make_optimizer(parameter_groups(model, extra, [scale], cfg), cfg)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert [(groups[n]["lr"], groups[n]["weight_decay"]) for n in ("decay", "no_decay", "ranges")] == [
        (1e-3, 0.05),
        (1e-3, 0.0),
        (1e-2, 0.3),
    ]
    assert groups["ranges"]["params"] == [scale]
    everything = [id(p) for group in optimizer.param_groups for p in group["params"]]
    wanted = [id(p) for p in [*model.parameters(), *extra] if p.requires_grad]
    assert sorted(everything) == sorted(wanted)
    no_decay = {id(p) for p in groups["no_decay"]["params"]}
    named = dict(model.named_parameters())
    assert {id(named[n]) for n in ("pos_embed", "cls_token", "norm.weight", "head.bias")} <= no_decay
    assert all(p.ndim > 1 for p in groups["decay"]["params"])
    assert set_learning_rate(optimizer, 0.5) == 5e-4
    assert groups["ranges"]["lr"] == 5e-3


def test_ranges_are_clipped_apart_from_the_weights() -> None:
    weight, scale = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(()))
    groups = [{"name": "decay", "params": [weight]}, {"name": "ranges", "params": [scale]}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    weight.grad, scale.grad = torch.full((2, 2), 1.0), torch.tensor(1000.0)
    assert clip_gradients(optimizer, 4.0) == 1000.0
    torch.testing.assert_close(weight.grad, torch.ones(2, 2))  # its norm 2 is below the limit
    assert float(scale.grad) == pytest.approx(4.0, rel=1e-5)
    weight.grad = torch.full((2, 2), float("nan"))
    assert math.isnan(clip_gradients(optimizer, None))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_guard(tmp_path: Path, bad: float) -> None:
    cfg = TrainConfig(learning_rate=0.5, amp="bf16")
    check_finite(3, {"soft": 1.0}, 2.0, cfg, None)
    with pytest.raises(TrainingError, match=r"step 3: the loss hard is not finite \(soft 1, hard .*bf16") as caught:
        check_finite(3, {"soft": 1.0, "hard": bad}, 2.0, cfg, None)
    assert "no state had been saved" in str(caught.value)
    with pytest.raises(TrainingError, match="the gradient is not finite") as caught:
        check_finite(3, {"soft": 1.0}, bad, cfg, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.exit_code == 1


def make_state(optimizer: str, seed: int) -> TrainState:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    cfg = TrainConfig(optimizer=optimizer, learning_rate=1e-2, weight_decay=0.01)
    return TrainState(
        {"model": model, "extra": nn.ParameterList()}, make_optimizer(parameter_groups(model, [], [], cfg), cfg), {}
    )


def step(state: TrainState, count: int) -> None:
    for _ in range(count):
        x = torch.randn(8, 6)
        state.parts["model"](x).square().mean().backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.step += 1


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb", "lion", "adafactor", "adan", "rmsproptf", "nadamw"])
def test_state_of_any_optimiser_comes_back(tmp_path: Path, optimizer: str) -> None:
    state = make_state(optimizer, seed=0)
    step(state, 3)
    save_state(state, tmp_path)
    step(state, 3)
    again = make_state(optimizer, seed=1)
    assert load_state(again, tmp_path, print) == tmp_path / "step-00000003"
    step(again, 3)
    for name, value in state.parts["model"].state_dict().items():
        assert torch.equal(value, again.parts["model"].state_dict()[name]), name


def test_a_save_that_was_cut_short_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = make_state("adamw", seed=0)
    step(state, 1)
    save_state(state, tmp_path)
    step(state, 1)
    with monkeypatch.context() as patch:
        patch.setattr("act.train.state.write_sealed", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            save_state(state, tmp_path)
    again = make_state("adamw", seed=1)
    load_state(again, tmp_path, print)
    assert again.step == 1
    step(state, 1)
    save_state(state, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def test_state_of_another_model_is_refused(tmp_path: Path) -> None:
    state = make_state("adamw", seed=0)
    save_state(state, tmp_path)
    state.parts["model"] = nn.Linear(3, 3)
    with pytest.raises(InputError, match="does not fit the model"):
        load_state(state, tmp_path, print)


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    save_tensors(tmp_path / "x.safetensors", model.state_dict())
    assert torch.equal(load_file(tmp_path / "x.safetensors")["1.weight"], model[0].weight)


def draws() -> tuple[float, float, float, float]:
    return random.random(), random.gauss(0, 1), float(np.random.standard_normal()), float(torch.rand(()))


def test_random_state_survives_json_and_safetensors(tmp_path: Path) -> None:
    seed_everything(1, 2)
    draws()  # leaves the cached second Gaussian of Python and NumPy
    tensors, plain = pack(get_random())
    save_tensors(tmp_path / "random.safetensors", tensors)
    expected = [draws() for _ in range(3)]
    set_random(unpack(load_file(tmp_path / "random.safetensors"), json.loads(json.dumps(plain))))
    assert [draws() for _ in range(3)] == expected
    seed_everything(1, 2)
    first = draws()
    seed_everything(1, 3)
    assert all(a != b for a, b in zip(first, draws(), strict=True))


@pytest.mark.parametrize("here", [0, 1, 3])
def test_random_state_goes_to_as_many_gpus_as_there_are(here: int, monkeypatch: pytest.MonkeyPatch) -> None:
    restored: dict[int, torch.Tensor] = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda part, index: restored.update({index: part}))
    saved = [torch.tensor([1]), torch.tensor([2])]
    set_random(dataclasses.replace(get_random(), cuda=saved))
    assert restored == dict(enumerate(saved[:here]))


def test_own_random_numbers_leave_the_global_ones_alone() -> None:
    seed_everything(7)
    expected = [draws(), draws()]
    seed_everything(7)
    own = OwnRandom(1, 2)
    found = [draws()]
    with own.swapped():
        first = draws()
    found.append(draws())
    assert found == expected
    with own.swapped():
        second = draws()
    again = OwnRandom(1, 2)
    with again.swapped():
        assert [draws(), draws()] == [first, second]


class Endless(IterableDataset):
    """Ten images, of a length nobody knows."""

    def __iter__(self):
        yield from (torch.full((3, 2, 2), float(i)) for i in range(10))


def firsts(data: DataBundle, consumed: int, count: int) -> list[float]:
    stream = batch_stream(data, 4, Accelerator(cpu=True), 0, consumed)
    return [float(next(stream).images[0, 0, 0, 0]) for _ in range(count)]


def test_streams_without_length_and_without_loader() -> None:
    endless = DataBundle.from_loaders(DataLoader(Endless(), batch_size=4))
    assert batches_per_epoch(endless.train_loader(4)) is None
    assert firsts(endless, 0, 5) == [0.0, 4.0, 8.0, 0.0, 4.0]
    assert firsts(endless, 4, 3) == [4.0, 8.0, 0.0]
    plain = DataBundle.from_loaders([torch.full((2, 3, 2, 2), float(i)) for i in range(3)])
    assert firsts(plain, 0, 4) == [0.0, 1.0, 2.0, 0.0]
    assert firsts(plain, 4, 3) == [1.0, 2.0, 0.0]


def test_total_steps() -> None:
    assert total_steps(TrainConfig(), 10) == 10
    assert total_steps(TrainConfig(epochs=3, accumulation=4), 10) == 7
    assert total_steps(TrainConfig(train_iter=5), None) == 5
    with pytest.raises(InputError, match="train_iter"):
        total_steps(TrainConfig(epochs=1), None)
    loader: Any = DataLoader(TensorDataset(torch.zeros(10, 1)), batch_size=4)
    assert batches_per_epoch(loader) == 2
    assert batches_per_epoch(DataLoader(TensorDataset(torch.zeros(3, 1)), batch_size=4)) == 1


def test_accelerators_of_other_settings_in_one_process(tmp_path: Path) -> None:
    ctx = Context(recipe=Recipe(), input_size=(3, 32, 32))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"
    accelerator = make_accelerator(TrainConfig(), ctx, tmp_path)
    assert (accelerator.mixed_precision, accelerator.device.type) == ("no", "cpu")
    assert make_accelerator(TrainConfig(), ctx, tmp_path).device.type == "cpu"


def test_meter_and_line(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("act.train.progress.time.monotonic", lambda: now[0])
    meter = Meter(steps=100, step=10, seconds=5.0, images=80)
    for number in range(11, 71):
        now[0] += 2.0
        meter.add(number, {"soft": float(number)}, 8)
    assert meter.losses() == {"soft": pytest.approx(sum(range(21, 71)) / 50)}
    assert meter.images == 80 + 60 * 8
    assert (meter.seconds, meter.images_per_second, meter.eta_seconds) == (125.0, 4.0, 60.0)
    line = describe("Prune", meter, {"soft": 0.25, "hard": 0.5}, 1e-4, {"flips": 0.01})
    assert line == "Prune 70/100  loss 0.75 (soft 0.25, hard 0.5)  flips 0.01  lr 0.0001  4.0 images/s  eta 1:00"
    assert [clock(59.6), clock(61), clock(3661)] == ["1:00", "1:01", "1:01:01"]


@pytest.mark.parametrize("first", [0.0, 1.0, 40.0])
@pytest.mark.parametrize(("eval_iter", "evaluation"), [(None, 0.0), (7, 5.0), (10, 30.0)])
@pytest.mark.parametrize("start", [0, 35])
def test_the_time_left_is_right_after_a_tenth(
    first: float, eval_iter: int | None, evaluation: float, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 0.8 to 1.2 s, the first of this process with `first` s more, evaluations of `evaluation` s."""
    now, steps = [0.0], 150
    monkeypatch.setattr("act.train.progress.time.monotonic", lambda: now[0])
    meter = Meter(steps, start, eval_iter=eval_iter)
    shown: list[tuple[int, float, float]] = []
    for step in range(start + 1, steps + 1):
        now[0] += 1.0 + 0.2 * (-1) ** step + (first if step == start + 1 else 0.0)
        meter.add(step, {}, 8)
        shown.append((step - start, now[0], meter.eta_seconds))
        if eval_iter is not None and (step % eval_iter == 0 or step == steps):
            now[0] += evaluation
            meter.evaluated(evaluation)
    assert meter.eta_seconds == 0
    known = max((steps - start) // 10, eval_iter or 0)  # an evaluation can be counted once one was seen
    for done, at, eta in shown:
        if done > known:
            assert eta == pytest.approx(now[0] - at, rel=0.2, abs=0.5), done


def test_many_terms_of_one_kind_are_shown_as_their_sum() -> None:
    features = {f"feature.blocks.{index}": 0.5 for index in range(4)}
    assert by_kind({"soft": 0.25} | features) == {"soft": 0.25, "feature (4)": 2.0}
    few = {"soft": 0.25, "feature.a": 1.0, "feature.b": 2.0}
    assert by_kind(few) == few


def test_bar_on_a_terminal_and_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("Prune", 10, 0) as bar:
        assert not bar.shown
        bar.update(1, "line")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    logging.getLogger("vitcompress").setLevel("WARNING")
    with Bar("Prune", 10, 0) as bar:
        assert not bar.shown
    logging.getLogger("vitcompress").setLevel("INFO")
    with Bar("Prune", 10, 0) as bar:
        assert bar.shown
        bar.update(5, "Prune 5/10 [loss] 0.5")
    assert "Prune 5/10 [loss] 0.5" in capsys.readouterr().err
