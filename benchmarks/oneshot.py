#!/usr/bin/env python3
"""N:M sparsity without any training: each criterion, with and without channels reordered before masks are chosen.

    python benchmarks/oneshot.py --bench tinyimagenet [--rows "magnitude;magnitude permute;..."] [--val N]
    python benchmarks/oneshot.py --order vit_base_patch16_224     # how long that search takes, random weights

Calibration images are training images; validation images only measure. "kept" is the share of the scores that fit at
all which the masks keep, in the order of channels that they were chosen in; efficacy is the share of the gap to all
that the new order wins. Scores are of the torch model. Seconds are those of the search and of masks and weights.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from dataclasses import replace
from pathlib import Path

import timm
import timm.data
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from refbench import BENCHES, rows_argument
from structure_curve import Bench

from act.context import Context
from act.recipe.schema import Recipe
from act.run.large_pages import large_pages
from act.sparsity.masks import parse_pattern
from act.sparsity.reorder import order_gains, reorderable, search_groups
from act.strategies.prune import CRITERIA, Prune

ROWS = [f"{criterion}{order}" for criterion in CRITERIA for order in ("", " permute")]


def measured(bench: Bench, row: str, pattern: str, images: int) -> str:
    """A row of the table."""
    criterion, _, order = row.partition(" ")
    model, ctx = copy.deepcopy(bench.model), replace(bench.ctx, edits=[])
    config = Prune.Config(pattern=pattern, criterion=criterion, permute=bool(order), images=images, damping=0.2)
    strategy = Prune(config)
    start = time.monotonic()
    strategy.prepare(model, ctx)
    strategy.finalize(model, ctx)
    seconds = time.monotonic() - start
    model.eval()
    top1, agreement = bench.scores(model)
    gain = strategy.facts(ctx).get("channel_order", {}).get("all")
    kept = f"{gain['before']:.2f} -> {gain['after']:.2f}, {gain['efficacy']:.1f} %" if gain else ""
    return f"| {criterion} | {order} | {kept} | {top1:.2f} | {agreement:.2f} | {seconds:.0f} |"


def order_search(name: str, pattern: str) -> str:
    """How long the search takes for all of a model's layers."""
    model = timm.create_model(name).eval()
    size = timm.data.resolve_data_config(model=model)["input_size"]
    layers = Prune(Prune.Config(pattern=pattern)).select(model, Context(Recipe(), size)).done
    start = time.monotonic()
    groups, left = reorderable(model, layers, parse_pattern(pattern).m, size)
    proved = time.monotonic() - start
    edit = search_groups(model, groups, layers, {}, parse_pattern(pattern), 0, lambda layer, kept: None)
    seconds = time.monotonic() - start - proved
    done = len(order_gains([edit]))
    return (
        f"{name}: {done} of {len(layers)} layers, {len(groups)} groups, {len(left)} left in their order; "
        f"groups found and proved in {proved:.0f} s, searched in {seconds:.0f} s, {torch.get_num_threads()} threads"
    )


@large_pages()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--bench", choices=tuple(BENCHES))
    what.add_argument("--order", metavar="MODEL", help="a model of timm's")
    rows_argument(parser, ROWS)
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--images", type=int, default=512, help="calibration images")
    parser.add_argument("--val", default="null", help="validation images (default: all)")
    args = parser.parse_args()
    if args.order:
        print(order_search(args.order, args.pattern))
        return
    bench = Bench(args.bench, args.images, args.val, "macs", [])
    print("| criterion | order | kept, efficacy | top-1 | agreement | seconds |", "|" + 6 * "---|", sep="\n")
    for row in args.rows:
        print(measured(bench, row, args.pattern, args.images), flush=True)


if __name__ == "__main__":
    main()
