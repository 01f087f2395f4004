"""`vitcompress recipes`: list, show, copy and check recipes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from act.cli.common import json_argument
from act.cli.output import note, print_json, table
from act.errors import InputError

HELP = "list, show, copy or check recipes"
DESCRIPTION = "Recipes that come with the package, and checks of your own."
EPILOG = """\
examples:
  vitcompress recipes ls
  vitcompress recipes show quickstart
  vitcompress recipes show quickstart --resolved TrainConfig.epochs=3
  vitcompress recipes cp quickstart mine.yaml
  vitcompress recipes validate mine.yaml QuantAware.weight_bits=4
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.set_defaults(overrides=[])
    actions = parser.add_subparsers(dest="action", metavar="ls|show|cp|validate", required=True)
    ls = actions.add_parser("ls", help="list the shipped recipes")
    json_argument(ls)
    show = actions.add_parser("show", help="print a recipe")
    show.add_argument("recipe", metavar="RECIPE")
    show.add_argument("overrides", metavar="key=value", nargs="*", default=[])
    show.add_argument("--resolved", action="store_true", help="with groups, overrides and every default written out")
    cp = actions.add_parser("cp", help="copy a recipe to a file of your own")
    cp.add_argument("recipe", metavar="RECIPE")
    cp.add_argument("to", metavar="FILE", type=Path)
    cp.add_argument("--force", action="store_true", help="overwrite FILE")
    validate = actions.add_parser("validate", help="report every problem of recipes; exit code 2 if there is one")
    validate.add_argument("recipes", metavar="RECIPE", nargs="+")
    validate.add_argument("overrides", metavar="key=value", nargs="*", default=[])
    json_argument(validate)


def command(args: argparse.Namespace) -> int:
    """Do the action."""
    return {"ls": _ls, "show": _show, "cp": _cp, "validate": _validate}[args.action](args)


def _ls(args: argparse.Namespace) -> int:
    from act.recipe.load import load_recipe
    from act.recipe.paths import list_recipes

    rows, found = [], []
    for path in list_recipes():
        try:
            recipe = load_recipe(path)
            stages, about = " + ".join(recipe.strategies), recipe.description.strip().split("\n")[0]
        except InputError as error:
            stages, about = "", f"cannot be used here: {error.problems[0]}"
        rows.append([path.stem, stages, about])
        found.append({"name": path.stem, "path": str(path), "strategies": stages.split(" + "), "description": about})
    if args.json:
        print_json(found)
    else:
        table("recipes", ["name", "strategies", "description"], rows)
    return 0


def _show(args: argparse.Namespace) -> int:
    from act.recipe.load import dump_recipe, read_recipe
    from act.recipe.paths import find_recipe
    from act.recipe.text import read_text

    if not args.resolved and not args.overrides:
        sys.stdout.write(read_text(find_recipe(args.recipe)))
        return 0
    loaded = read_recipe(args.recipe, args.overrides)
    for text in loaded.notes:
        note(text)
    sys.stdout.write(dump_recipe(loaded.recipe))
    return 0


def _cp(args: argparse.Namespace) -> int:
    from act.recipe.paths import find_recipe
    from act.recipe.text import read_text
    from act.run.atomic import write_text

    source = find_recipe(args.recipe)
    target = args.to / source.name if args.to.is_dir() else args.to
    if target.exists() and not args.force:
        raise InputError(f"{target}: exists; choose another name, or overwrite it with --force")
    if not target.parent.is_dir():
        raise InputError(f"{target.parent}: no such folder")
    try:
        write_text(target, read_text(source))
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error
    print(target)
    return 0


def _validate(args: argparse.Namespace) -> int:
    from act.recipe.load import read_recipe

    words = [word for word in args.recipes if _is_override(word)] + args.overrides
    problems: dict[str, list[str]] = {}
    for name in args.recipes:
        if _is_override(name):
            continue
        try:
            loaded = read_recipe(name, words)
            for text in loaded.notes:
                note(f"{name}: {text}")
            problems[name] = []
        except InputError as error:
            problems[name] = error.problems
        if not args.json and not problems[name]:
            print(f"{name}: ok")
    if args.json:
        print_json([{"recipe": name, "ok": not found, "problems": found} for name, found in problems.items()])
        return InputError.exit_code if any(problems.values()) else 0
    if any(problems.values()):
        raise InputError([problem for found in problems.values() for problem in found])
    return 0


def _is_override(word: str) -> bool:
    return ("=" in word or word.startswith("~")) and not Path(word).exists()
