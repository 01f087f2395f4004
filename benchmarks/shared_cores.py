#!/usr/bin/env python3
"""What a training step takes alone and beside another process that trains on the same cores.

    python benchmarks/shared_cores.py [--model vit_tiny_patch16_224] [--batch 32] [--steps 8] [--rounds 3]

Steps of plain training in bf16 on noise, in processes of their own with all cores each, once with OpenMP's own
GOMP_SPINCOUNT and once with the one that `vitcompress` sets; rounds are interleaved. Prints one JSON line: the median
seconds of a step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from act.run.spin import COUNT, TURNS, VARIABLES

VARIANTS = {"OpenMP's own": {}, f"{COUNT}={TURNS}": {COUNT: str(TURNS)}}


def steps(model_name: str, batch: int, count: int) -> list[float]:
    """Seconds of `count` steps after two that do not count."""
    import timm
    import torch

    model = timm.create_model(model_name)
    optimizer = torch.optim.AdamW(model.parameters())
    images, labels = torch.randn(batch, 3, 224, 224), torch.randint(0, 1000, (batch,))
    seconds = []
    for _ in range(count + 2):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


def at_once(processes: int, variables: dict[str, str], words: list[str]) -> list[float]:
    """The seconds of all steps of so many processes at once."""
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES} | variables
    command = [sys.executable, __file__, "--child", *words]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit("shared_cores: a process failed")
    return [seconds for output in outputs for seconds in json.loads(output)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(steps(args.model, args.batch, args.steps)))
        return 0
    words = ["--model", args.model, "--batch", str(args.batch), "--steps", str(args.steps)]
    found: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for name, variables in VARIANTS.items():
            for processes, where in ((1, "alone"), (2, "two at once")):
                found.setdefault(f"{name}, {where}", []).extend(at_once(processes, variables, words))
    print(json.dumps({name: round(statistics.median(values), 3) for name, values in found.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
