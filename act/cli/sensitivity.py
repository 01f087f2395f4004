"""`vitcompress sensitivity`: what each compression of each layer costs on its own."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act.cli.common import json_file_argument, read, recipe_arguments, unwritable
from act.cli.output import note, print_json, table
from act.errors import InputError
from act.folding import shorten
from act.verbosity import is_quiet

if TYPE_CHECKING:
    from act.recipe.schema import Recipe
    from act.sensitivity.measure import Measured, Sensitivity, Step

HELP = "measure what pruning or quantising each layer alone costs, on training images"
DESCRIPTION = """\
Treats one layer, or one block's heads or MLP units, at a time and compares the model's predictions with the
original's on training images (data.calibration, else data.train; validation images are never read): N:M sparsity by
magnitude, integers, 4-bit weights, and a share of heads or MLP units taken out. Settings are those of the recipe's
Prune and QuantAware or QuantPost where it has them, else their defaults; ranges are calibrated with the same images.
The cost is the KL divergence of the predictions in nats, the relative error of the logits, and the agreement."""
EPILOG = """\
examples:
  vitcompress sensitivity quickstart
  vitcompress sensitivity recipe.yaml --images 256 --json costs.json --picture costs.png
  vitcompress sensitivity recipe.yaml --treatments quantization QuantPost.first_and_last=true --top 0
"""
PAUSE = 10.0  # seconds between two lines of progress where there is no terminal


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    recipe_arguments(parser)
    parser.add_argument("--images", type=int, default=128, metavar="N", help="images to use (default: %(default)s)")
    parser.add_argument(
        "--treatments",
        default="sparsity,quantization,weights,structure",
        metavar="NAME,...",
        help="what to measure (default: %(default)s)",
    )
    parser.add_argument(
        "--share",
        type=float,
        default=25.0,
        metavar="P",
        help="percent of a block's heads or MLP units that structure takes out (default: %(default)g)",
    )
    parser.add_argument(
        "--top", type=int, default=30, metavar="N", help="rows of the table; 0: all (default: %(default)s)"
    )
    json_file_argument(parser)
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw a heat map, layers by treatments (.svg, .png or .pdf)"
    )


def command(args: argparse.Namespace) -> int:
    """Measure and print."""
    _check(args)
    recipe = read(args)
    begin = time.monotonic()
    found = _measured(recipe, args)
    seconds = time.monotonic() - begin
    if args.picture is not None:
        from act.sensitivity.picture import write_picture

        write_picture(args.picture, found, f"{recipe.name}: {found.images} images")
    everything = as_json(recipe, found, seconds)
    if str(args.json) == "-":
        print_json(everything)
        return 0
    if args.json is not None:
        from act.run.atomic import write_json

        write_json(args.json, everything)
    _show(recipe, found, seconds, args.top)
    return 0


def _families(args: argparse.Namespace) -> list[str]:
    return [word for word in str(args.treatments).split(",") if word]


def _check(args: argparse.Namespace) -> None:
    """InputError for every option out of range, before anything heavy runs."""
    from act.sensitivity.choose import FAMILIES

    problems = []
    for name, least in (("images", 1), ("top", 0)):
        if getattr(args, name) < least:
            problems.append(f"--{name}: {getattr(args, name)}; allowed: {least} or more")
    if not 0 < args.share < 100:
        problems.append(f"--share: {args.share:g}; allowed: above 0 and below 100, percent of heads or MLP units")
    unknown = [word for word in _families(args) if word not in FAMILIES]
    if unknown or not _families(args):
        problems.append(f"--treatments: {args.treatments}; allowed: {', '.join(FAMILIES)}, separated by commas")
    if args.json is not None and str(args.json) != "-":
        problems += unwritable("--json", args.json)
    if args.picture is not None:
        from act.sensitivity.picture import picture_problem

        problem = picture_problem(args.picture)
        problems += [problem] if problem is not None else unwritable("--picture", args.picture)
    if problems:
        raise InputError(problems)


def _measured(recipe: Recipe, args: argparse.Namespace) -> Measured:
    from act.calibration import CalibrationImages
    from act.context import Context
    from act.data.bundle import DataBundle
    from act.data.preprocess import resolve_preprocess
    from act.models import load_model
    from act.run.ranks import state
    from act.run.runner import check_head
    from act.sensitivity.choose import choose_treatments
    from act.sensitivity.measure import measure_sensitivity

    if recipe.data.train is None and recipe.data.calibration is None:
        raise InputError(f"{args.recipe}: data.train: not given; write data.train=FOLDER (labels are not needed)")
    model = load_model(recipe.model).to(state().device)
    preprocess = resolve_preprocess(model, recipe.data)
    ctx = Context(recipe, preprocess.input_size, DataBundle(recipe.data, preprocess, recipe.seed), state().device)
    treatments = choose_treatments(ctx, _families(args), args.images, args.share / 100)
    check_head(model, ctx)
    with _Watch() as watch:
        found = measure_sensitivity(model, CalibrationImages(ctx, args.images), treatments, watch.step)
    if found.images < args.images:
        note(f"--images: {args.images} asked for, the recipe has {found.images}")
    return found


class _Watch:
    """Progress on stderr: a line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._terminal, self._last = sys.stderr.isatty() and not is_quiet(), time.monotonic()

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *error: object) -> None:
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def step(self, step: Step) -> None:
        from act.train.progress import clock

        text = f"{step.treatment}: {step.done}/{step.units} {step.layer}  eta {clock(step.seconds)}"
        if not step.units:
            text = f"{step.treatment}: preparing"
        if self._terminal:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif step.done == step.units or time.monotonic() - self._last > PAUSE:
            self._last = time.monotonic()
            note(text)


def as_json(recipe: Recipe, found: Measured, seconds: float) -> dict[str, Any]:
    """Everything measured, and every layer that was left, as plain values."""
    from act.recipe.load import recipe_hash

    return {
        "schema": 1,
        "recipe": recipe.name,
        "recipe_hash": recipe_hash(recipe),
        "model": recipe.model.name,
        "images": found.images,
        "seconds": round(seconds, 1),
        "treatments": list(found.left),
        "costs": [asdict(cost) for cost in by_cost(found.costs)],
        "left": [
            {"treatment": name, "name": layer.name, "reason": layer.reason}
            for name, left in found.left.items()
            for layer in left
        ],
    }


def by_cost(costs: Sequence[Sensitivity]) -> list[Sensitivity]:
    """The most expensive first."""
    return sorted(costs, key=lambda cost: -cost.kl)


def _show(recipe: Recipe, found: Measured, seconds: float, top: int) -> None:
    ordered = by_cost(found.costs)
    shown = ordered[:top] if top else ordered
    rows = [
        [
            *(cost.layer, cost.kind, cost.treatment, f"{cost.kl:.3g}", f"{100 * cost.error:.2f}"),
            *(f"{cost.agreement:.2f}", cost.detail),
        ]
        for cost in shown
    ]
    columns = ["layer", "kind", "treatment", "KL", "error %", "agreement %", "remark"]
    title = f"{recipe.name}: {recipe.model.name}, one layer at a time, {found.images} images, {seconds:.0f} s"
    table(title, columns, rows, right=["KL", "error %", "agreement %"])
    if len(shown) < len(ordered):
        print(f"{len(ordered) - len(shown)} more cost less than these; --top 0 shows all")
    for name, left in found.left.items():
        for reason in dict.fromkeys(layer.reason for layer in left):
            names = [layer.name for layer in left if layer.reason == reason]
            what = names[0] if len(names) == 1 else f"{len(names)} layers ({shorten(names)})"
            print(f"{name} leaves {what}: {reason}")
