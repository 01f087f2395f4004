"""`vitcompress run`: compress, export, verify, report."""

from __future__ import annotations

import argparse
from pathlib import Path

from act.cli.common import finish, json_argument, read, recipe_arguments
from act.cli.sharing import show_pulled

HELP = "compress a model as a recipe says, export, verify and report"
DESCRIPTION = """\
Runs the stages of a recipe, exports the model, opens and scores the exported file, and writes report.json and
report.html. The same command again continues where an interrupted run stopped."""
EPILOG = """\
exit codes: 0 done, goals met; 1 went wrong, can be continued; 2 bad input; 3 goals missed (the best result is kept);
130 and 143 ended by Ctrl-C and SIGTERM, can be continued: a training step is finished and saved first

examples:
  vitcompress run quickstart
  vitcompress run recipe.yaml --dir runs/first TrainConfig.epochs=3 QuantAware.weight_bits=4
  vitcompress run recipe.yaml ~Prune data.train=/photos
  vitcompress run recipe.yaml --json --quiet > report.json
  accelerate launch --multi_gpu --num_processes 2 -m act run recipe.yaml --dir runs/two
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    recipe_arguments(parser)
    parser.add_argument("--dir", type=Path, metavar="DIR", help="run folder (default: runs/NAME of the recipe)")
    parser.add_argument(
        "--force",
        action="store_true",
        help="use a run folder although its recipe, model or data were others: finished stages whose inputs are the "
        "same are kept, the rest is removed and computed anew (without it: refused, naming what differs)",
    )
    json_argument(parser)


def command(args: argparse.Namespace) -> int:
    """Run; the exit code says whether the goals were met."""
    recipe = read(args)
    show_pulled(args.recipe, recipe)
    from act.run.runner import run

    return finish(run(recipe, args.dir or Path("runs") / recipe.name, force=args.force), args.json)
