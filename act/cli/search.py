"""`vitcompress search`: many runs of one recipe, the best under its target kept."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from act.cli.common import json_argument, read, recipe_arguments
from act.cli.output import note, print_json, table
from act.cli.sharing import show_pulled
from act.errors import InputError
from act.verbosity import is_quiet

if TYPE_CHECKING:
    from act.search.report import Findings

HELP = "search over fields of a recipe for the best run under its target"
DESCRIPTION = """\
Runs a recipe many times with other values, proposed by Optuna, and freezes the best under the recipe's target as
DIR/best.yaml. The space names the values that dotted keys of the recipe may take:

  QuantPost.weight_bits:     {choice: [4, 8]}
  TrainConfig.epochs:        {int: [1, 4], step: 1}
  TrainConfig.learning_rate: {float: [1e-5, 1e-3], log: true}
  Prune:                     {choice: [off, {pattern: "2:4"}]}     # off leaves a strategy out

Every trial is a run folder, DIR/trials/NNNN. The same command again continues: trials that an ended process left are
taken up where they stopped. Several processes with the same DIR share the work."""
EPILOG = """\
exit codes: 0 the best meets the target; 1 went wrong, can be continued; 2 bad input; 3 the target is missed (the best
is kept)

examples:
  vitcompress search quickstart --space space.yaml --trials 12
  vitcompress search recipe.yaml --space space.yaml --hours 8 --dir runs/search data.workers=4
  vitcompress search recipe.yaml --space space.yaml --objectives accuracy,speedup,bytes --json
  vitcompress search recipe.yaml --space space.yaml --storage postgresql://host/db --study vit
"""
TRIALS = 20


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    recipe_arguments(parser)
    parser.add_argument("--space", type=Path, required=True, metavar="FILE", help="YAML file: the values to try")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="folder of the search (default: runs/NAME-search)")
    parser.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help=f"trials of all processes together (default: {TRIALS}; without limit where --hours is given)",
    )
    parser.add_argument("--hours", type=float, metavar="H", help="start no further trial after so many hours")
    parser.add_argument(
        "--objectives",
        metavar="NAME,...",
        help="one to three of accuracy, agreement, latency, speedup, bytes (default: accuracy and what the target "
        "limits, else latency)",
    )
    parser.add_argument(
        "--sampler",
        default="auto",
        choices=("auto", "tpe", "nsga2", "random", "all"),
        help="who proposes (default: all combinations where they are no more than --trials, else tpe)",
    )
    parser.add_argument("--storage", metavar="URL", help="Optuna storage, or a journal file (default: inside DIR)")
    parser.add_argument("--study", metavar="NAME", help="name of the study in --storage (default: the recipe's name)")
    json_argument(parser)


def command(args: argparse.Namespace) -> int:
    """Search; the exit code says whether the best meets the target."""
    _check(args)
    from act.search.study import check_sampler, need_optuna

    need_optuna()
    from act.run.goals import EXIT_CODES
    from act.search.figures import check_objectives, default_objectives
    from act.search.queue import Budget, Queue
    from act.search.report import Findings, need_result, write
    from act.search.space import read_space
    from act.search.worker import work

    _alone()
    recipe = read(args)
    show_pulled(args.recipe, recipe)
    space = read_space(args.space, recipe)
    objectives = args.objectives.split(",") if args.objectives is not None else default_objectives(recipe)
    check_objectives(objectives, recipe)
    check_sampler(args.sampler, space)
    folder = args.dir or Path("runs") / f"{recipe.name}-search"
    study = args.study or (recipe.name if args.storage is not None else "search")
    queue = Queue(folder, space, objectives, args.storage, study, args.sampler)
    trials = TRIALS if args.trials is None and args.hours is None else args.trials
    again = shlex.join(["vitcompress", "search", args.recipe, *args.overrides, "--space", str(args.space)])

    def findings() -> Findings:
        return Findings(space, tuple(objectives), tuple(queue.trials()), again)

    size = "endless" if math.isinf(space.size) else f"{space.size:.0f}"
    _log(f"search in {folder}: {len(space.dimensions)} keys, {size} combinations; {', '.join(objectives)}")
    work(queue, Budget(trials, args.hours), _log, lambda: write(folder, findings()))
    found = findings()
    chosen = need_result(found)
    _output(found, folder, args.json)
    return EXIT_CODES[chosen.state]


def _check(args: argparse.Namespace) -> None:
    """InputError for every option out of range."""
    problems = []
    if args.trials is not None and not 1 <= args.trials <= 1_000_000:
        problems.append(f"--trials: {args.trials}; allowed: 1 to 1000000")
    if args.hours is not None and not 0 < args.hours <= 1e6:
        problems.append(f"--hours: {args.hours:g}; allowed: above 0 to 1000000")
    if args.study is not None and args.storage is None:
        problems.append("--study: names a study in --storage; give that as well, or leave both out")
    if problems:
        raise InputError(problems)


def _alone() -> None:
    """InputError under `accelerate launch`, whose processes would each search by themselves."""
    from act.run.ranks import state

    if state().num_processes > 1:
        raise InputError("search: runs in one process; to share the work start the command several times on one --dir")


def _log(text: str) -> None:
    if not is_quiet():
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _output(found: Findings, folder: Path, as_json: bool) -> None:
    from act.search.picture import matplotlib_missing
    from act.search.report import BEST, PICTURE, columns

    missing = matplotlib_missing()
    if as_json:
        print_json(found.as_json())
    else:
        heads, rows = columns(found)
        if not is_quiet():
            right = [head for head in heads if head not in ("result", "")]
            table(f"search: {found.space.base.name}", heads, rows, right=right)
        for trial in found.trials:
            if trial.state in ("failed", "passed_over"):
                note(f"trial {trial.number} {trial.state.replace('_', ' ')}: {trial.reason}")
        print(f"best: {folder / BEST}" + ("" if missing else f"; picture: {folder / PICTURE}"))
    if missing:
        note(missing)
