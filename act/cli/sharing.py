"""`vitcompress recipes freeze|push|pull`: recipes with their results, from and to others."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from act.cli.output import note, print_json, table

FREEZE = "Writes a finished run as a recipe with its measured results and the hashes of model and images; no paths."
PUSH = """\
Sends a recipe to a folder, a file, or a repository of the Hugging Face Hub (with your login there; pip install
'vitcompress[hub]'). Refuses one that names users, hosts or paths of this machine, line by line."""
PULL = """\
Fetches a recipe from a file or folder, https, or the Hugging Face Hub into the cache, checks it, and shows what it
does; nothing is run. A recipe keeps its hash: other content under the same address is refused without --sha256."""
_PULL_EXAMPLES = """\
examples:
  vitcompress recipes pull https://example.org/fast.yaml --sha256 HASH
  vitcompress recipes pull hf://owner/repo/fast.yaml@REVISION
  vitcompress run fast data.train=photos data.val=labelled
"""
_PUSH_EXAMPLES = """\
examples:
  vitcompress recipes push mine.yaml shared_folder --strip
  vitcompress recipes push mine.yaml hf://owner/repo/mine.yaml
"""


def add_actions(actions: Any) -> None:
    """The three sub-commands."""
    raw = argparse.RawDescriptionHelpFormatter
    freeze = actions.add_parser("freeze", help="write a finished run as a recipe with its results", description=FREEZE)
    freeze.add_argument("run", metavar="RUN", type=Path, help="a finished run folder")
    freeze.add_argument("-o", dest="to", metavar="FILE", type=Path, required=True, help="the recipe to write")
    freeze.add_argument("--force", action="store_true", help="overwrite FILE")
    push = actions.add_parser(
        "push", help="give a recipe to others", description=PUSH, epilog=_PUSH_EXAMPLES, formatter_class=raw
    )
    push.add_argument("recipe", metavar="RECIPE")
    push.add_argument("to", metavar="DEST", help="a folder, a file, or hf://OWNER/REPO/PATH.yaml[@BRANCH]")
    push.add_argument("--strip", action="store_true", help="rewrite it without local paths and comments")
    push.add_argument(
        "--allow", metavar="WORD", action="append", default=[], help="a word that is no trace; may repeat"
    )
    push.add_argument("--force", action="store_true", help="overwrite a file of DEST")
    pull = actions.add_parser(
        "pull", help="take a recipe from others", description=PULL, epilog=_PULL_EXAMPLES, formatter_class=raw
    )
    pull.add_argument("source", metavar="SRC", help="a file or folder, https://..., or hf://OWNER/REPO/PATH.yaml@REV")
    pull.add_argument("--sha256", metavar="HASH", help="what the file must be, 64 hexadecimal digits")
    pull.add_argument("--json", action="store_true", help="print JSON instead of a table")


def freeze(args: argparse.Namespace) -> int:
    """Write the recipe of a run."""
    from act.share.freeze import freeze as frozen
    from act.share.local import write_new

    text, lines = frozen(args.run, args.to.stem)
    write_new(args.to, text, args.force)
    for line in lines:
        note(line)
    print(args.to)
    return 0


def push(args: argparse.Namespace) -> int:
    """Send a recipe and say how it is pulled."""
    from act.share.push import push as pushed

    where, sha256 = pushed(args.recipe, args.to, note, strip=args.strip, allowed=args.allow, force=args.force)
    print(f"vitcompress recipes pull {where} --sha256 {sha256}")
    return 0


def pull(args: argparse.Namespace) -> int:
    """Fetch a recipe and show it."""
    from act.recipe.load import load_recipe
    from act.share.pull import pull as fetched
    from act.share.summary import summary

    found = fetched(args.source, args.sha256, note)
    lines = summary(load_recipe(found.path), found.lock)
    if args.json:
        print_json({"name": found.name, "path": str(found.path), "summary": dict(lines)})
        return 0
    table(found.name, ["what", ""], lines)
    print(f"run it with: vitcompress run {found.name}")
    return 0


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {"freeze": freeze, "push": push, "pull": pull}


def show_pulled(name: str, recipe: Any) -> None:
    """Before a pulled recipe runs: where it came from and what it will do, on stderr. Nothing for other recipes."""
    from act.recipe.paths import find_recipe
    from act.recipe.pulled import pulled_at
    from act.share.summary import summary

    item = pulled_at(find_recipe(name))
    for what, words in summary(recipe, item.lock) if item is not None else []:
        note(f"{what}: {words}")
