"""`vitcompress reproduce`: run a recipe again and compare with the results it records."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from act.cli.common import json_argument, read, recipe_arguments
from act.cli.output import note, print_json, table
from act.cli.sharing import show_pulled

if TYPE_CHECKING:
    from act.share.reproduce import Line

HELP = "run a recipe again and say whether its recorded results hold"
DESCRIPTION = """\
Checks first whether settings, weights of the model and images are those that the recipe's results were measured with,
and stops there if they are not. Then runs the recipe and compares each recorded figure with the new one: top-1 within
0.5 points, agreement within 1 point, bytes within 1 %, parameters and multiply-accumulates exactly; speed-ups, at most
20 % lower, only on the machine that they were measured on. Times in seconds are not compared."""
EPILOG = """\
exit codes: 0 every compared result holds; 3 one does not; 2 bad input, or a recipe without results; 1 the run failed

examples:
  vitcompress reproduce quickstart
  vitcompress reproduce shared.yaml data.train=photos data.val=labelled --tolerance top1=0.2
  vitcompress reproduce shared.yaml --anyway data.val=other_photos --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    recipe_arguments(parser)
    parser.add_argument("--dir", type=Path, metavar="DIR", help="run folder (default: runs/reproduce-NAME)")
    parser.add_argument("--anyway", action="store_true", help="run even if model, images or settings are others")
    parser.add_argument(
        "--tolerance", metavar="NAME=NUMBER", action="append", default=[],
        help="another tolerance: points for top1 and agreement, shares for the rest; may be given again",
    )  # fmt: skip
    json_argument(parser)


def command(args: argparse.Namespace) -> int:
    """Check, run, compare and print; 3 when something recorded does not hold."""
    recipe = read(args)
    show_pulled(args.recipe, recipe)
    from act.share.reproduce import FAILS, check_figures, check_inputs, parse_tolerances

    tolerances = parse_tolerances(args.tolerance)
    before = check_inputs(recipe)
    if any(line.verdict == FAILS for line in before) and not args.anyway:
        note("not run: the results were measured with something else; give --anyway to run and compare nevertheless")
        return _print(recipe.name, before, args.json)
    from act.run.runner import run

    result = run(recipe, args.dir or Path("runs") / f"reproduce-{recipe.name}")
    return _print(recipe.name, before + check_figures(recipe.results, result.report, tolerances), args.json)


def _print(name: str, lines: Sequence[Line], as_json: bool) -> int:
    from act.share.reproduce import FAILS, HOLDS

    failed, held = (sum(line.verdict == verdict for line in lines) for verdict in (FAILS, HOLDS))
    if as_json:
        print_json({"recipe": name, "holds": not failed, "results": [dataclasses.asdict(line) for line in lines]})
    else:
        held_or_none = f"all {held} compared results hold" if held else "nothing could be compared"
        verdict = f"{failed} results do NOT hold" if failed else held_or_none
        rows = [[line.what, line.recorded, line.found, line.verdict, line.reason] for line in lines]
        table(f"{name}: {verdict}", ["what", "recorded", "here", "", "remark"], rows, right=["recorded", "here"])
    return 3 if failed else 0
