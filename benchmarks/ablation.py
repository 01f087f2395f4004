#!/usr/bin/env python3
"""What each ingredient of 2:4 sparsity with distillation, then quantisation, is worth: the recipe without it.

    python benchmarks/ablation.py --bench tinyimagenet --dir DIR [--rows "all;no features;..."] [--seeds 0,1]
        [--steps 60,30] [--val 1000] [key=value ...]

Every row is a whole run of `gpusq_vit_tiny` with one thing changed, on the same small budget (optimiser steps of 64
images in the two stages), once per seed. What runs have in common is computed once, in DIR/shared; started again,
finished rows are read. Scores are of the torch model on validation images, where nothing is chosen by them. Prints a
table row for each: agreement and top-1 after sparsity and after quantisation, mean over the seeds and, in brackets,
half their spread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from refbench import BENCHES, bench_overrides, bench_root, rows_argument, without_labels

from act.recipe.load import load_recipe
from act.run.runner import run

ROWS: dict[str, list[str]] = {
    "all": [],
    "no features": ["Distillation.node=[]"],
    "no soft logits": ["Distillation.soft_weight=0"],
    "equal layer weights": ["Distillation.layer_weights=equal"],
    "late features only": ["Distillation.node=[blocks.9,blocks.10,blocks.11]"],
    "no permutation": ["Prune.permute=false"],
    "magnitude start": ["Prune.criterion=magnitude"],
    "magnitude start, no permutation": ["Prune.criterion=magnitude", "Prune.permute=false"],
    "shifts, no crops": ["data.augment.scale=1", "data.augment.shift=12"],
    "SR-STE": ["Prune.mask=sr-ste"],
    "SR-STE, magnitude start": ["Prune.mask=sr-ste", "Prune.criterion=magnitude"],
    "hard labels too": ["Distillation.hard_weight=1"],
}
LABELLED = ("hard labels too",)


def score(row: str, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The report's stages of one run."""
    root = bench_root()
    images = root / args.bench / BENCHES[args.bench]["train"]
    labelled = row in LABELLED
    train = images if labelled else without_labels(images, args.dir / "images")
    first, second = args.steps.split(",")
    budget = [
        f"seed={seed}",
        f"data.limit_val={args.val}",
        "data.batch_size=64",
        "TrainConfig.epochs=null",
        f"TrainConfig.train_iter={first}",
        f"TrainConfig.stages.QuantAware={{train_iter: {second}, epochs: null, learning_rate: 1e-4, warmup_iter: 5}}",
        "TrainConfig.warmup_iter=10",
        "export.benchmark=false",
    ]
    settings = [*bench_overrides(root, args.bench, train), *budget, *ROWS[row], *args.overrides]
    folder = args.dir / f"{row.replace(' ', '_').replace(',', '')}_{seed}"
    result = run(load_recipe("gpusq_vit_tiny", settings), folder, shared=args.dir / "shared")
    return list(result.report["stages"])


def cell(values: list[float]) -> str:
    """Mean and half of the spread."""
    return f"{statistics.mean(values):.2f} ({(max(values) - min(values)) / 2:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", choices=tuple(BENCHES), required=True)
    parser.add_argument("--dir", type=Path, required=True)
    rows_argument(parser, ROWS)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--steps", default="60,30", help="optimiser steps of the two stages")
    parser.add_argument("--val", type=int, default=1000, help="validation images")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    lines = ["| row | agreement, 2:4 | top-1, 2:4 | agreement, 2:4 int8 | top-1, 2:4 int8 |", "|---|---|---|---|---|"]
    for row in args.rows:
        runs = [score(row, seed, args) for seed in map(int, args.seeds.split(","))]
        cells = [cell([stages[i][key] for stages in runs]) for i in (0, 1) for key in ("agreement", "top1")]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
