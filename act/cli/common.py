"""Arguments that several verbs share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from act.cli.output import note, print_json
from act.verbosity import is_quiet

if TYPE_CHECKING:
    from act.recipe.schema import Recipe
    from act.run.result import RunResult


def recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE and the `key=value` words after it."""
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped or pulled recipe (recipes ls)"
    )
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],
        help="change a value (TrainConfig.epochs=1), choose a config group (Prune=2to4), remove a section (~Prune)",
    )


def json_argument(parser: argparse.ArgumentParser) -> None:
    """--json, for verbs that report."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def unwritable(option: str, path: Path) -> list[str]:
    """Why no file can be written to `path`, the value of `option`, in one line; empty if one can. Makes no folder."""
    if path.is_dir():
        return [f"{option}: {path}: a folder; name a file"]
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        return [f"{option}: {path}: {folder} is a file; choose another folder"]
    return [] if os.access(folder, os.W_OK) else [f"{option}: {path}: {folder} is not writable; choose another folder"]


def json_file_argument(parser: argparse.ArgumentParser) -> None:
    """--json [FILE], for verbs whose measurements are worth keeping."""
    parser.add_argument(
        "--json",
        nargs="?",
        const=Path("-"),
        type=Path,
        metavar="FILE",
        help="write everything as JSON; without FILE, or with -, print it instead of a table",
    )


def read(args: argparse.Namespace) -> Recipe:
    """The recipe of `recipe_arguments`; how ACT spellings were read is noted on stderr."""
    from act.recipe.load import read_recipe

    loaded = read_recipe(args.recipe, args.overrides)
    for text in loaded.notes:
        note(text)
    return loaded.recipe


def finish(result: RunResult, as_json: bool) -> int:
    """Print a run's report as JSON, or for a quiet command its last line; the exit code."""
    if as_json:
        print_json(result.report)
    elif is_quiet():
        print(f"{result.status}: {result.verdict} {result.folder / 'report.html'}")
    return result.exit_code
