"""Arguments that several verbs share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act.cli.output import note

if TYPE_CHECKING:
    from act.recipe.schema import Recipe


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


def debug_argument(parser: argparse.ArgumentParser, default: Any = argparse.SUPPRESS) -> None:
    """--debug, which every verb takes, too; one that is not given leaves the value from before the verb."""
    parser.add_argument("--debug", action="store_true", default=default, help="show the traceback of an error")


def unwritable(option: str, path: Path) -> list[str]:
    """Why no file can be written to `path`, the value of `option`, in one line; empty if one can. Makes no folder."""
    if path.is_dir():
        return [f"{option}: {path}: a folder; name a file"]
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        return [f"{option}: {path}: {folder} is a file; choose another folder"]
    return [] if os.access(folder, os.W_OK) else [f"{option}: {path}: {folder} is not writable; choose another folder"]


def read(args: argparse.Namespace) -> Recipe:
    """The recipe of `recipe_arguments`; how ACT spellings were read is noted on stderr."""
    from act.recipe.load import read_recipe

    loaded = read_recipe(args.recipe, args.overrides)
    for text in loaded.notes:
        note(text)
    return loaded.recipe
