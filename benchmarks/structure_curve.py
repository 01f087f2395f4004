#!/usr/bin/env python3
"""What structured pruning costs before any training: shares of MACs removed, ways to choose what goes.

    python benchmarks/structure_curve.py --bench tinyimagenet [--ratios 0.15,0.25,0.35,0.5] [--ways obs/measured,...]

A way is `criterion/allocation` of TransformerPrune, with `/plain` behind it for weights that are not refitted. Moments,
saliencies and losses of a way are measured once and used for every ratio. Agreement is with the original's
predictions, on validation images; nothing is chosen by them. With `--of latency` the ratios are shares of the time of
the int8 model in target.backend at target.batch, as the measured table predicts them; a way with `/macs` behind it
counts MACs instead. The way `depth` removes that share of the blocks. All models are then timed in turns, at the end.
Prints a table row for each way and ratio.
"""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from refbench import BENCHES, bench_overrides, bench_root

from act.analysis import analyze
from act.calibration import CalibrationImages
from act.context import Context
from act.data.bundle import DataBundle
from act.data.preprocess import resolve_preprocess
from act.models import load_model, logits
from act.recipe.load import load_recipe
from act.sparsity.walk import refit_layers
from act.strategies.depth_prune import DepthPrune, DepthPruneConfig
from act.strategies.transformer_prune import TransformerPruneConfig
from act.structure.allocate import allocate
from act.structure.cost import full_size, mac_rates
from act.structure.curves import OutputLoss
from act.structure.importance import NEEDS_GRADIENTS
from act.structure.latency import latency_table, time_models
from act.structure.planner import Cost, Space, measured_losses, options, scored_losses, uniform
from act.structure.reducer import Reducer
from act.structure.shrink import set_tensors, shrink_edit
from act.structure.statistics import gather
from act.structure.units import Found, find_units

WAYS = "obs/measured,obs/uniform,taylor/global,activation/global,magnitude/global,magnitude/uniform/plain"


class Bench:
    """The dense model, its data, and its predictions on validation images."""

    def __init__(self, bench: str, images: int, val: int | str, of: str, words: list[str]) -> None:
        root = bench_root()
        train = root / bench / BENCHES[bench]["train"]
        recipe = load_recipe(
            "vit_tiny_int8_ptq", [*bench_overrides(root, bench, train), f"data.limit_val={val}", *words]
        )
        self.model = load_model(recipe.model).eval()
        preprocess = resolve_preprocess(self.model, recipe.data)
        self.data = DataBundle(recipe.data, preprocess, recipe.seed)
        self.ctx = Context(recipe, preprocess.input_size, self.data)
        self.images = CalibrationImages(self.ctx, images)
        self.labels = torch.cat([batch.labels for batch in self.data.val(64) if batch.labels is not None])
        self.predictions = self.predict(self.model)
        self.of = of

    def cost(self, found: Found, space: Space, of: str) -> tuple[Cost, float]:
        """The cost of a group at a size, and that of the whole model."""
        if of == "latency":
            table = latency_table(self.model, found, space, self.ctx)
            return table.cost, table.total
        rates, total = mac_rates(self.model, found, self.ctx.input_size)
        return (lambda name, size: rates[name].cost(size)), float(total)

    def macs_removed(self, model: nn.Module) -> float:
        """Percent of the multiply-accumulates that `model` saves."""
        before, after = (analyze(m, self.ctx.input_size).macs for m in (self.model, model))
        return 100 * (1 - after / before)

    def time_removed(self, models: dict[str, nn.Module]) -> dict[str, float]:
        """Percent of the original's time that each of `models` saves, all timed in turns with it."""
        times = time_models({"the original": self.model} | models, self.ctx)
        return {name: 100 * (1 - times[name] / times["the original"]) for name in models}

    @torch.no_grad()
    def predict(self, model: nn.Module) -> Tensor:
        return torch.cat([logits(model(batch.images)).argmax(1) for batch in self.data.val(64)])

    def scores(self, model: nn.Module) -> tuple[float, float]:
        """top-1 and agreement in percent."""
        found = self.predict(model)
        top1, same = ((found == other).float().mean().item() for other in (self.labels, self.predictions))
        return 100 * top1, 100 * same


class Depth:
    """Whole blocks, as DepthPrune chooses and removes them; a ratio is a share of the blocks."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def pruned(self, ratio: float) -> nn.Module:
        model = copy.deepcopy(self.bench.model)
        DepthPrune(DepthPruneConfig(blocks=ratio)).prepare(model, replace(self.bench.ctx, edits=[]))
        return model


class Way:
    """One way to choose: its statistics and losses, measured once."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench, (self.criterion, self.allocation, *more) = bench, name.split("/")
        self.refit = "plain" not in more
        self.found, self.space = find_units(bench.model), Space()
        gradients = self.criterion in NEEDS_GRADIENTS
        stats = gather(bench.model, self.found.groups, bench.images, gradients)
        self.reducer = Reducer(bench.model, self.found, stats, self.criterion, self.refit)
        self.cost, self.total = bench.cost(self.found, self.space, "macs" if "macs" in more else bench.of)
        self.losses: Any = None
        if self.allocation == "measured":
            few = torch.cat(list(CalibrationImages(bench.ctx, TransformerPruneConfig().loss_images)))
            loss = OutputLoss(bench.model, [group.reader for group in self.found.groups], few)
            self.losses = measured_losses(self.space, self.reducer, loss, lambda _: None)
        elif self.allocation == "global":
            self.losses = scored_losses(self.space, self.reducer)

    def pruned(self, ratio: float) -> nn.Module:
        groups = self.found.groups
        budget = sum(self.cost(group.name, full_size(group)) for group in groups) - ratio * self.total
        if self.losses is None:
            sizes = uniform(self.space, groups, self.cost, budget)
        else:
            sizes = allocate(options(self.space, groups, self.losses, self.cost), budget)
        changed = {group.name: sizes[group.name] for group in groups if sizes[group.name] != full_size(group)}
        model = copy.deepcopy(self.bench.model)
        tensors = self.reducer.tensors(changed)
        replace(self.bench.ctx, edits=[]).edit(model, shrink_edit(changed))
        set_tensors(model, tensors)
        if self.refit:
            readers = [group.reader for group in groups]
            damping = TransformerPruneConfig().damping
            refit_layers(self.bench.model, model, readers, lambda: iter(self.bench.images), damping)
        return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", choices=tuple(BENCHES), required=True)
    parser.add_argument("--ratios", default="0.15,0.25,0.35,0.5")
    parser.add_argument("--ways", default=WAYS)
    parser.add_argument("--images", type=int, default=256, help="calibration images (of the training images)")
    parser.add_argument("--val", type=int, default=1000, help="validation images")
    parser.add_argument("--of", choices=("macs", "latency"), default="macs", help="what the ratios are shares of")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe, e.g. target.backend")
    args = parser.parse_intermixed_args()
    bench = Bench(args.bench, args.images, args.val, args.of, args.overrides)
    lines: dict[str, str] = {}
    models: dict[str, nn.Module] = {}
    print("| way | asked for | MACs removed | top-1 | agreement |\n|---|---|---|---|---|")
    print(f"| original | | 0.0 % | {bench.scores(bench.model)[0]:.2f} | 100.00 |", flush=True)
    for name in args.ways.split(","):
        way = Depth(bench) if name == "depth" else Way(bench, name)
        for ratio in map(float, args.ratios.split(",")):
            model = way.pruned(ratio)
            top1, agreement = bench.scores(model)
            row = f"| {name} | {ratio:.0%} | {bench.macs_removed(model):.1f} % | {top1:.2f} | {agreement:.2f} |"
            print(row, flush=True)
            key = f"{name} {ratio}"
            lines[key] = row
            if args.of == "latency":
                models[key] = model
    if models:
        print("\n| time removed | way | asked for | MACs removed | top-1 | agreement |\n|---|---|---|---|---|---|")
        for key, percent in sorted(bench.time_removed(models).items(), key=lambda item: item[1]):
            print(f"| {percent:.1f} % {lines[key]}")


if __name__ == "__main__":
    main()
