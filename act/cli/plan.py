"""`vitcompress plan`: the composed pipeline; nothing heavy runs."""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from act.cli.common import json_argument, read, recipe_arguments
from act.cli.output import number, print_json, size, table, warn
from act.folding import shorten

if TYPE_CHECKING:
    from act.automatic import Automatic
    from act.plan import Plan, StagePlan
    from act.run.pace import Pace

HELP = "show the stages of a recipe, and which layers each will and will not touch"
DESCRIPTION = """\
Builds the model on the CPU, looks at the data, and shows the stages in order, the layers that each will touch, those
it leaves with the reason, the training steps and an estimate of memory. Nothing is trained or written; with --time, a
few training steps are timed on a copy of the model."""
EPILOG = """\
examples:
  vitcompress plan quickstart
  vitcompress plan recipe.yaml Prune.exclude='[blocks.0.*]' --layers
  vitcompress plan recipe.yaml --time
  vitcompress plan recipe.yaml --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    recipe_arguments(parser)
    parser.add_argument("--layers", action="store_true", help="list every layer that will be touched, one per line")
    parser.add_argument("--time", action="store_true", help="estimate the time of training from a few timed steps")
    json_argument(parser)


def command(args: argparse.Namespace) -> int:
    """Print the plan."""
    recipe = read(args)
    from act.models import load_model
    from act.plan import make_plan

    model = load_model(recipe.model)
    plan = make_plan(recipe, model)
    paces: list[Pace | None] = [None] * len(plan.stages)
    if args.time:
        from act.run.pace import measure_paces

        paces = measure_paces(plan, model)
    if args.json:
        print_json(as_json(plan, paces))
        return 0
    _print_head(plan)
    if plan.chosen is not None:
        _print_choice(plan.chosen)
    for entry in plan.stages:
        _print_stage(entry, args.layers)
    if args.time:
        _print_time(plan, paces)
    for text in plan.warnings:
        warn(text)
    return 0


def as_json(plan: Plan, paces: Sequence[Pace | None]) -> dict[str, Any]:
    """The plan as plain values; `paces` has an entry per stage, None where no time was estimated."""
    from act.recipe.load import recipe_hash

    return {
        "recipe": plan.recipe.name,
        "recipe_hash": recipe_hash(plan.recipe),
        "model": plan.recipe.model.name,
        "parameters": plan.parameters,
        "input_size": list(plan.input_size),
        "train_images": plan.train_images,
        "labelled": plan.labelled,
        "stages": [
            {
                "name": entry.stage.name,
                "strategy": entry.stage.strategy.name,
                "objectives": [objective.name for objective in entry.stage.objectives],
                "trains": entry.stage.train is not None,
                "steps": entry.steps,
                "length": entry.length,
                "layers_done": entry.layers.done,
                "layers_left": [{"name": layer.name, "reason": layer.reason} for layer in entry.layers.left],
                "memory_bytes": entry.memory.total,
                "time": None if pace is None else dataclasses.asdict(pace),
            }
            for entry, pace in zip(plan.stages, paces, strict=True)
        ],
        "chosen": None if plan.chosen is None else {"sections": plan.chosen.sections, "reasons": plan.chosen.reasons},
        "warnings": plan.warnings,
    }


def _print_head(plan: Plan) -> None:
    recipe = plan.recipe
    images = "no data" if plan.train_images is None else f"{plan.train_images} training images"
    labels = "" if plan.labelled is None else ", labelled" if plan.labelled else ", unlabelled"
    rows = [
        [
            entry.stage.index,
            entry.stage.name,
            len(entry.layers.done),
            len(entry.layers.left),
            "-" if entry.steps is None else entry.steps,
            entry.length,
            "~" + size(entry.memory.total),
        ]
        for entry in plan.stages
    ]
    shape = " x ".join(map(str, plan.input_size))
    title = f"{recipe.name}: {recipe.model.name}, {number(plan.parameters)} parameters, {shape}; {images}{labels}"
    columns = ["", "stage", "layers", "left", "steps", "length", "memory"]
    table(title, columns, rows, right=["layers", "left", "steps", "memory"])


def _print_choice(chosen: Automatic) -> None:
    print("\nThe recipe names no strategy. Chosen, and why:")
    for reason in chosen.reasons:
        print(f"  {reason}")
    print("The same, written out:")
    for name, section in chosen.sections.items():
        values = ", ".join(f"{key}: {'null' if value is None else value}" for key, value in section.items())
        print(f"  {name}: {{{values}}}")


def _print_stage(entry: StagePlan, layers: bool) -> None:
    stage = entry.stage
    print(f"\n{stage.index}. {stage.name}")
    if stage.train is not None:
        learns = " and ".join(objective.name for objective in stage.objectives) or "the labels"
        train = stage.train
        warmup = f" after {train.warmup_iter} steps of warm-up" if train.warmup_iter else ""
        rate = f"{train.optimizer}, rate {train.learning_rate:g} {train.scheduler}{warmup}"
        print(f"  learns from {learns}: {rate}; batch {train.batch_size or 'of data'}")
    print(f"  memory of tensors, MB: {entry.memory.formula}")
    if layers:
        for name in entry.layers.done:
            print(f"  touches {name}")
    elif entry.layers.done:
        print(f"  touches {len(entry.layers.done)} layers: {shorten(entry.layers.done)}")
    for reason, count in Counter(layer.reason for layer in entry.layers.left).items():
        names = [layer.name for layer in entry.layers.left if layer.reason == reason]
        print(f"  leaves {names[0] if count == 1 else f'{count} layers ({shorten(names)})'}: {reason}")


def _print_time(plan: Plan, paces: Sequence[Pace | None]) -> None:
    from act.run.pace import TIMED

    rows = [
        [
            entry.stage.name,
            "-" if entry.steps is None else entry.steps,
            f"{pace.step_seconds:.3g}",
            f"{pace.images_per_second:.1f}",
            "unknown" if pace.hours is None else f"{pace.hours:.3g}",
        ]
        for entry, pace in zip(plan.stages, paces, strict=True)
        if pace is not None
    ]
    print()
    if not rows:
        print("Time of training: no stage trains.")
        return
    columns = ["stage", "steps", "seconds per step", "images/s", "hours"]
    table(f"Time of training, estimated from {TIMED} steps of the dense model", columns, rows, right=columns[1:])
    print("  Not in it: preparation, evaluation, export, and what masks and quantisers add to a step.")
