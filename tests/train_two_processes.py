"""Run by test_train_processes under `accelerate launch`: train a tiny model and, on process 0, keep its weights."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from act.context import Context
from act.data.bundle import DataBundle
from act.recipe.schema import Recipe, TrainConfig
from act.run.stop import Stopped, sigterm_raises
from act.strategies.distillation import Distillation
from act.train.recover import recover
from act.train.state import save_tensors


def build(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    size = {"img_size": 32, "patch_size": 8, "depth": 2, "num_heads": 3, "num_classes": 5}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", embed_dim=width, **size)
    nn.init.normal_(model.head.weight, std=0.3)
    return model.eval()


def main(folder: Path, kill: int | None) -> None:
    """Train 6 steps; with `kill`, one process is terminated in this step, and `recover` is called again."""
    # 26 images in batches of 8: the last batch of each epoch is not full.
    images = torch.randn(26, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    bundle = DataBundle.from_loaders(DataLoader(TensorDataset(images), batch_size=8))
    ctx = Context(recipe=Recipe(), input_size=(3, 32, 32), data=bundle)
    ctx.recipe.data.batch_size = 8
    cfg = TrainConfig(
        train_iter=6, optimizer="sgd", learning_rate=0.02, eval_iter=2, select="best", ema_decay=0.5, accumulation=2
    )
    cfg.logging_iter, cfg.save_iter = 1, 3
    # A metric that each process would see differently, was it not for process 0 deciding.
    calls: list[int] = []

    def evaluate(model: nn.Module) -> float:
        calls.append(len(calls))
        return float(len(calls))

    def log(event: str, message: str = "", **fields: Any) -> None:
        if event == "train_step" and fields["step"] == kill and PartialState().process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)  # one is asked, and both must stop after the same step

    for attempt in range(1 if kill is None else 2):
        student = build(48, seed=1)
        objective = Distillation(Distillation.Config()).objective(student, [build(96, seed=0)], ctx)
        ctx.log = log if attempt == 0 else Context.log
        if kill is not None and attempt == 0:
            with contextlib.suppress(Stopped), sigterm_raises():
                recover(student, None, [objective], cfg, ctx, folder, evaluate)
            assert (folder / f"step-{kill:08d}" / "state.json").is_file()
        else:
            result = recover(student, None, [objective], cfg, ctx, folder, evaluate)
    weights = [parameter.detach() for parameter in objective.parameters()]
    state = PartialState()
    save_tensors(
        folder / f"rank{state.process_index}.safetensors",
        student.state_dict() | {f"extra.{index}": weight for index, weight in enumerate(weights)},
    )
    (folder / f"rank{state.process_index}.json").write_text(
        json.dumps({"processes": state.num_processes, "metric": result.best_metric, "evaluations": len(calls)})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
