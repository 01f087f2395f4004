#!/usr/bin/env python3
"""What a distilled 2:4 quantisation-aware training step costs beside the same step without masks and fake-quant.

    python benchmarks/step_cost.py [--model deit_tiny_patch16_224] [--batch 32] [--steps 10] [--amp bf16]

Same model, images, teacher, losses and optimiser; steps of the variants are interleaved in one process and their
medians compared. Peak memory comes from one process per variant. `modelopt` (installed or skipped, said so) is NVIDIA
ModelOpt's int8 QAT of the same model, dense, in the same loop. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from act.context import Context
from act.data.batch import Batch
from act.recipe.schema import Recipe
from act.run.large_pages import large_pages
from act.strategies.base import load_strategies
from act.train.attention import to_write_out, written_out

VARIANTS = ("plain", "compressed", "modelopt")


class Noise:
    """Calibration images: noise is enough to time a step."""

    labelled = False

    def calibration(self, images: int, batch_size: int) -> list[Batch]:
        return [Batch(torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(0)), None)]


def compress(model: nn.Module, ctx: Context) -> None:
    """2:4 masks, then PACT fake-quantisers, as the stages of a run do."""
    for name in ("Prune", "QuantAware"):
        cls = load_strategies()[name]
        strategy = cls(cls.Config())
        strategy.prepare(model, ctx)
        if name == "Prune":
            strategy.finalize(model, ctx)


def modelopt(model: nn.Module, images: Tensor) -> None:
    """ModelOpt's int8 default: per-channel weights, per-tensor inputs, max calibration."""
    import modelopt.torch.quantization as mtq

    mtq.quantize(model, mtq.INT8_DEFAULT_CFG, lambda m: m(images))


def step_of(variant: str, name: str, batch: int, amp: str) -> Callable[[], None]:
    """A closure that runs one training step of a variant."""
    import timm

    torch.manual_seed(0)
    recipe = Recipe()
    recipe.data.calibration_images = 8
    ctx = Context(recipe, (3, 224, 224), Noise())  # type: ignore[arg-type]
    teacher = timm.create_model(name).eval()
    student = deepcopy(teacher)
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    if variant == "compressed":
        compress(student, ctx)
    elif variant == "modelopt":
        modelopt(student, images[:8])
    cls = load_strategies()["Distillation"]
    objective = cls(cls.Config()).objective(student, [teacher], ctx)  # type: ignore[attr-defined]
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    student.train()
    plain = to_write_out([student, teacher], torch.device("cpu"), amp == "bf16")

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=amp == "bf16"), written_out(plain):
            terms = objective.losses(images, None, student(images))
        torch.stack([term.float() for term in terms.values()]).sum().backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def peak_mb(variant: str, args: argparse.Namespace) -> float:
    """Peak resident memory of three steps of one variant, in a process of its own."""
    command = [sys.executable, __file__, "--model", args.model, "--batch", str(args.batch), "--amp", args.amp]
    done = subprocess.run([*command, "--only", variant], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


@large_pages()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--amp", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        step = step_of(args.only, args.model, args.batch, args.amp)
        for _ in range(3):
            step()
        # Not ru_maxrss, which a child inherits from its parent.
        status = Path("/proc/self/status").read_text()
        print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
        return 0
    steps: dict[str, Callable[[], None]] = {}
    for variant in VARIANTS:
        try:
            steps[variant] = step_of(variant, args.model, args.batch, args.amp)
        except ImportError as error:
            print(f"{variant}: skipped, {error}", file=sys.stderr)
    times: dict[str, list[float]] = {variant: [] for variant in steps}
    for turn in range(args.steps + 1):
        for variant, step in steps.items():
            begin = time.perf_counter()
            step()
            if turn:  # the first turn warms up
                times[variant].append(time.perf_counter() - begin)
    medians = {variant: statistics.median(seconds) for variant, seconds in times.items()}
    memory = {variant: peak_mb(variant, args) for variant in steps}
    result: dict[str, Any] = {
        "model": args.model,
        "batch": args.batch,
        "amp": args.amp,
        "threads": torch.get_num_threads(),
        "step_seconds": {k: round(v, 3) for k, v in medians.items()},
        "time_ratio": {k: round(v / medians["plain"], 3) for k, v in medians.items()},
        "peak_rss_mb": {k: round(v) for k, v in memory.items()},
        "memory_ratio": {k: round(v / memory["plain"], 3) for k, v in memory.items()},
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
