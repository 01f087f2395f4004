"""`vitcompress recipes`: list, show, copy and check recipes; what is given to others is in sharing.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from act.cli import sharing
from act.cli.common import json_argument
from act.cli.output import note, print_json, table
from act.errors import InputError

HELP = "list, show, copy and check recipes; freeze, push and pull them"
DESCRIPTION = "Recipes that come with the package, checks of your own, and recipes given to and taken from others."
EPILOG = """\
examples:
  vitcompress recipes ls
  vitcompress recipes show quickstart
  vitcompress recipes show quickstart --resolved TrainConfig.epochs=3
  vitcompress recipes cp quickstart mine.yaml
  vitcompress recipes validate mine.yaml QuantAware.weight_bits=4
  vitcompress recipes freeze runs/mine -o measured.yaml
  vitcompress recipes push measured.yaml hf://owner/repo/measured.yaml
  vitcompress recipes pull https://example.org/fast.yaml --sha256 HASH
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    actions = parser.add_subparsers(dest="action", metavar="ls|show|cp|validate|freeze|push|pull", required=True)
    ls = actions.add_parser("ls", help="list the shipped and the pulled recipes")
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
    sharing.add_actions(actions)


def command(args: argparse.Namespace) -> int:
    """Do the action."""
    own: dict[str, Callable[[argparse.Namespace], int]]
    own = {"ls": _ls, "show": _show, "cp": _cp, "validate": _validate}
    return (own | sharing.ACTIONS)[args.action](args)


def _ls(args: argparse.Namespace) -> int:
    from act.recipe.load import load_recipe
    from act.recipe.paths import list_recipes
    from act.recipe.pulled import list_pulled
    from act.share.summary import headline

    rows, found = [], []
    known = [(path.stem, path) for path in list_recipes()] + [(item.name, item.path) for item in list_pulled()]
    for name, path in known:
        try:
            recipe = load_recipe(path)
            stages, measured = list(recipe.strategies), headline(recipe.results)
            about = recipe.description.strip().split("\n")[0]
        except InputError as error:
            stages, measured, about = [], "", f"cannot be used here: {error.problems[0]}"
        rows.append([name, " + ".join(stages), measured, about])
        found.append(
            {"name": name, "path": str(path), "strategies": stages, "measured": measured, "description": about}
        )
    if args.json:
        print_json(found)
    else:
        table("recipes", ["name", "strategies", "measured", "description"], rows)
    return 0


def _show(args: argparse.Namespace) -> int:
    from act.recipe.load import dump_recipe, read_recipe
    from act.recipe.paths import find_recipe
    from act.recipe.text import parse, read_text

    if not args.resolved and not args.overrides:
        path = find_recipe(args.recipe)
        content = read_text(path)
        parse(content, str(path))  # what is no YAML is refused, what is a wrong recipe is shown
        sys.stdout.write(content)
        return 0
    loaded = read_recipe(args.recipe, args.overrides)
    for text in loaded.notes:
        note(text)
    sys.stdout.write(dump_recipe(loaded.recipe))
    return 0


def _cp(args: argparse.Namespace) -> int:
    from act.recipe.paths import find_recipe
    from act.recipe.text import read_text
    from act.share.local import write_new

    source = find_recipe(args.recipe)
    target = args.to / source.name if args.to.is_dir() else args.to
    write_new(target, read_text(source), args.force)
    print(target)
    return 0


def _validate(args: argparse.Namespace) -> int:
    from act.recipe.load import read_recipe

    words = [word for word in args.recipes if _is_override(word)] + args.overrides
    if all(_is_override(word) for word in args.recipes):
        raise InputError(f"{args.recipes[0]}: changes a recipe, and none is named; write: recipes validate RECIPE ...")
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
