"""The training loop: every setting is applied, and a resumed run ends with the same bits."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from train_support import make_context, make_dataset, make_model, same, train

from act.context import Context
from act.data.bundle import DataBundle
from act.errors import InputError
from act.recipe.schema import Recipe, TrainConfig
from act.train.laps import PARTS
from act.train.recover import TrainResult, recover
from act.train.task import TaskLoss


class Killed(Exception):
    pass


def kill_at(step: int) -> Any:
    def log(event: str, message: str = "", **fields: Any) -> None:
        if event == "train_step" and fields["step"] == step:
            raise Killed

    return log


def test_training_lowers_the_loss_and_reports(tmp_path: Path) -> None:
    events: list[Any] = []
    _, result = train(tmp_path, make_context(events=events), train_iter=100, logging_iter=5)
    steps = [fields for event, _, fields in events if event == "train_step"]
    assert [fields["step"] for fields in steps] == list(range(5, 101, 5))
    assert steps[-1]["losses"]["task"] < 0.75 * steps[0]["losses"]["task"]
    assert steps[0]["lr"] > steps[-1]["lr"] > 0
    assert (result.steps, result.stopped_by, result.best_metric) == (100, "steps", None)
    assert result.images_per_second > 0
    assert set(result.losses) == {"task"}
    # Steps 2, 10, ..., 98 were taken apart; 100 times what they took is about what all of them did.
    assert list(result.step_seconds) == list(PARTS) and min(result.step_seconds.values()) > 0
    assert 100 * sum(result.step_seconds.values()) < 3 * result.seconds


def test_time_of_steps_goes_on_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("act.train.laps.EVERY", 2)
    ctx = make_context()
    ctx.log = kill_at(5)
    with pytest.raises(Killed):
        train(tmp_path, ctx, save_iter=4, logging_iter=1)
    train(tmp_path, save_iter=4)
    saved = json.loads((tmp_path / "step-00000007" / "state.json").read_text())
    saved = saved.get("record", saved)
    assert saved["laps"]["steps"] == 3  # the second and the fourth before the kill, the sixth after it


@pytest.mark.parametrize("extra", [{}, {"ema_decay": 0.9, "accumulation": 2, "amp": "bf16"}, {"optimizer": "sgd"}])
def test_resume_in_the_middle_of_an_epoch_ends_with_the_same_bits(tmp_path: Path, extra: dict[str, Any]) -> None:
    whole, _ = train(tmp_path / "whole", save_iter=3, **extra)
    ctx = make_context()
    ctx.log = kill_at(5)
    with pytest.raises(Killed):
        train(tmp_path / "cut", ctx, save_iter=3, logging_iter=1, **extra)
    assert [path.name for path in (tmp_path / "cut").glob("step-*")] == ["step-00000003"]
    torch.rand(100)  # whatever happened in between
    resumed, result = train(tmp_path / "cut", save_iter=3, **extra)
    assert result.steps == 7
    assert same(whole, resumed)


def test_attention_is_written_out_in_steps_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 on a CPU, for the student and what its objective runs; evaluations stay as they are."""
    teacher, calls = make_model(), []
    fused = torch.nn.functional.scaled_dot_product_attention

    def counting(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return fused(*args, **kwargs)

    class Beside(TaskLoss):
        def losses(self, images: Tensor, labels: Tensor | None, output: Tensor) -> dict[str, Tensor]:
            teacher(images)
            return super().losses(images, labels, output)

        def models(self) -> list[nn.Module]:
            return [teacher]

    def evaluate(model: nn.Module) -> float:
        with torch.no_grad():
            model(torch.zeros(1, 3, 32, 32))
        return 0.0

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counting)
    weights = {}
    for amp in ("bf16", "no"):
        calls.clear()
        model = make_model()
        cfg = TrainConfig(train_iter=2, eval_iter=2, amp=amp)
        recover(model, None, [Beside()], cfg, make_context(), tmp_path / amp, evaluate)
        in_steps = calls.count(True)
        assert calls.count(False) == 2  # one evaluation of two blocks
        assert in_steps == (0 if amp == "bf16" else 2 * (2 + 2))
        weights[amp] = model.head.weight
        assert all(block.attn.fused_attn for net in (model, teacher) for block in net.blocks)
    torch.testing.assert_close(weights["bf16"], weights["no"], rtol=0, atol=1e-3)


def test_resume_skips_consumed_images_without_reading_them(tmp_path: Path) -> None:
    whole = make_dataset()
    train(tmp_path / "whole", make_context(whole), train_iter=5)
    ctx = make_context()
    ctx.log = kill_at(4)
    with pytest.raises(Killed):
        train(tmp_path / "cut", ctx, train_iter=5, save_iter=3, logging_iter=1)
    rest = make_dataset()
    train(tmp_path / "cut", make_context(rest), train_iter=5, save_iter=3)
    assert rest.read == whole.read[24:]


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first, result = train(tmp_path)
    dataset = make_dataset()
    again, second = train(tmp_path, make_context(dataset))
    assert same(first, again)
    assert second == result
    assert dataset.read == []
    names = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert names == ["model.safetensors", "state.json"]


def test_other_settings_are_refused_on_the_same_folder(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(InputError, match=r"learning_rate was 0\.001 and is 0\.01.*fresh --dir"):
        train(tmp_path, learning_rate=1e-2)


def test_epochs_count_full_batches(tmp_path: Path) -> None:
    dataset = make_dataset()
    ctx = make_context(dataset, batch_size=12)
    _, result = train(tmp_path, ctx, train_iter=None, epochs=2)
    assert result.steps == 6
    first, second = dataset.read[:36], dataset.read[-36:]
    assert len(set(first)) == 36
    assert first != second


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1, "train_iter": 2}
    halves, _ = _trained(tmp_path / "halves", make_context(batch_size=4), accumulation=2, **settings)
    one, _ = _trained(tmp_path / "one", make_context(batch_size=8), **settings)
    for a, b in zip(halves.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def _trained(folder: Path, ctx: Context, **fields: Any) -> tuple[nn.Module, TrainResult]:
    model = make_model()
    return model, recover(model, None, [TaskLoss()], TrainConfig(**fields), ctx, folder, None)


def test_best_weights_are_kept_and_target_stops(tmp_path: Path) -> None:
    seen: list[tuple[float, dict[str, Tensor]]] = []
    metrics = iter([10.0, 30.0, 20.0, 5.0])

    def evaluate(model: nn.Module) -> float:
        assert not model.training
        seen.append((next(metrics), copy.deepcopy(model.state_dict())))
        return seen[-1][0]

    model, result = train(tmp_path / "max", evaluate=evaluate, eval_iter=2, select="best", train_iter=7)
    assert [metric for metric, _ in seen] == [10.0, 30.0, 20.0, 5.0]
    assert result.best_metric == 30.0
    assert all(torch.equal(value, seen[1][1][name]) for name, value in model.state_dict().items())
    assert not list((tmp_path / "max").glob("best-*"))

    values = iter([9.0, 4.0])
    _, result = train(
        tmp_path / "min", evaluate=lambda _: next(values), eval_iter=2, metric_mode="min", target_metric=4.0
    )
    assert (result.steps, result.stopped_by, result.best_metric) == (4, "target_metric", 4.0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"epochs": 1}, "epochs, train_iter"),
        ({"optimizer": "adamww"}, "did you mean adamw"),
        ({"scheduler": "cosin"}, "allowed: cosine, linear, constant"),
        ({"select": "best"}, "give eval_iter"),
        ({"target_metric": 3.0}, "give eval_iter"),
        ({"eval_iter": 2}, "name data.val"),
        ({"accumulation": 0}, "accumulation: 0"),
        ({"trackers": ["tensorbored"]}, "TrainConfig.trackers: 'tensorbored'"),
        ({"ema_decay": 1.5}, "ema_decay"),
    ],
)
def test_impossible_settings_are_named(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        train(tmp_path, **fields)
    assert words in str(caught.value)


def test_training_without_labels_or_loss_says_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Distillation"):
        recover(make_model(), None, [], TrainConfig(), make_context(), tmp_path, None)
    unlabelled = DataBundle.from_loaders(DataLoader(TensorDataset(torch.randn(16, 3, 32, 32)), batch_size=8))
    ctx = Context(recipe=Recipe(), input_size=(3, 32, 32), data=unlabelled)
    with pytest.raises(InputError, match="needs labels"):
        recover(make_model(), None, [TaskLoss()], TrainConfig(), ctx, tmp_path, None)


def test_tensorboard_gets_every_term(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(tmp_path, trackers=["tensorboard"], logging_iter=2)
    assert list((tmp_path / "trackers").rglob("events.out.tfevents*"))


def test_state_is_plain_json_and_safetensors(tmp_path: Path) -> None:
    ctx = make_context()
    ctx.log = kill_at(3)
    with pytest.raises(Killed):
        train(tmp_path, ctx, save_iter=2, logging_iter=1, ema_decay=0.5)
    names = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert names == [
        "ema.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "random.safetensors",
        "state.json",
    ]
    assert json.loads((tmp_path / "step-00000002" / "state.json").read_text())["step"] == 2
