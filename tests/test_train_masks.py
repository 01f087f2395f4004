"""What training leaves when a loss is NaN, and what averaging and ranges leave of masks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from train_support import make_context, make_model

from act.context import Context
from act.errors import TrainingError
from act.recipe.schema import TrainConfig
from act.strategies.base import LayerPlan, Objective, Phase, Strategy
from act.train.recover import recover
from act.train.task import TaskLoss


class Spoiled(Objective):
    """Gives NaN from a step on."""

    def __init__(self, good: int) -> None:
        self.good = good

    def losses(self, images: Tensor, labels: Tensor | None, output: Tensor) -> dict[str, Tensor]:
        self.good -= 1
        return {"fine": output.square().mean(), "spoiled": output.mean() * (1.0 if self.good >= 0 else float("nan"))}


def test_nan_stops_with_the_last_good_state(tmp_path: Path) -> None:
    model = make_model()
    cfg = TrainConfig(train_iter=9, save_iter=2, learning_rate=1e-3)
    with pytest.raises(TrainingError) as caught:
        recover(model, None, [Spoiled(5)], cfg, make_context(), tmp_path, None)
    message = str(caught.value)
    assert "step 6" in message
    assert "the loss spoiled is not finite" in message
    assert "learning_rate 0.001" in message
    assert str(tmp_path / "step-00000004") in message
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


class Scaled(nn.Module):
    """A model with a learned range and a mask buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = make_model()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("mask", torch.ones(4, dtype=torch.bool))
        self.register_buffer("level", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.scale


class Masking(Strategy):
    """Flips the mask at each step; named only in its subclass so that the registry stays clean."""

    phase = Phase.SPARSITY

    def select(self, model: nn.Module, ctx: Context) -> LayerPlan:
        return LayerPlan()

    def prepare(self, model: nn.Module, ctx: Context) -> None:
        return None

    def range_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        return [model.scale]

    def before_step(self, model: nn.Module) -> None:
        assert all(parameter.grad is not None for parameter in model.parameters())
        self.prepared_steps = getattr(self, "prepared_steps", 0) + 1

    def after_step(self, model: nn.Module, step: int, steps: int) -> dict[str, float]:
        assert self.prepared_steps == step
        model.mask[step % 4] = ~model.mask[step % 4]
        model.level.fill_(step)
        return {"flipped": 1.0}


def test_averages_keep_masks_exact_and_ranges_have_their_own_rate(tmp_path: Path) -> None:
    model = Scaled()
    averaged: dict[str, Tensor] = {}

    def evaluate(ema: nn.Module) -> float:
        assert ema is not model
        averaged.update(copy.deepcopy(ema.state_dict()))
        assert ema.mask.dtype == torch.bool
        assert torch.equal(ema.mask, model.mask)
        assert float(ema.level) == float(model.level)
        return 0.0

    events: list[Any] = []
    cfg = TrainConfig(
        train_iter=6,
        ema_decay=0.9,
        eval_iter=3,
        logging_iter=1,
        learning_rate=1e-12,
        range_learning_rate=0.1,
        clip_grad=None,
    )
    ctx = make_context(events=events)
    recover(model, Masking(None), [TaskLoss()], cfg, ctx, tmp_path, evaluate)
    # The weights stand still, the range moves.
    torch.testing.assert_close(model.body.head.weight, make_model().head.weight, atol=1e-9, rtol=0)
    assert abs(float(model.scale.detach()) - 1.0) > 0.01
    assert torch.equal(model.scale, averaged["scale"])  # it ends with the averaged weights
    assert events[0][2]["values"] == {"flipped": 1.0}
