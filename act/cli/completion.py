"""`vitcompress completion`: a script that completes verbs, options and files in a shell."""

from __future__ import annotations

import argparse
from pathlib import Path

SHELLS = ("bash", "zsh", "fish")
HELP = "print a script for the completion of this command in a shell"
DESCRIPTION = "Prints a script for bash, zsh or fish, with which the Tab key completes verbs, options and files."
EPILOG = """\
examples:
  vitcompress completion bash > ~/.local/share/bash-completion/completions/vitcompress
  vitcompress completion zsh > ~/.zfunc/_vitcompress        # a folder of $fpath
  vitcompress completion fish > ~/.config/fish/completions/vitcompress.fish
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("shell", choices=SHELLS, help="the shell to complete in")


def command(args: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    from act.cli.main import build_parser

    parser = build_parser()
    _name_files(parser)
    print(shtab.complete(parser, args.shell))
    return 0


def _name_files(parser: argparse.ArgumentParser) -> None:
    """Tell shtab which arguments are files, those of every verb and its actions included."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _name_files(inner)
        elif action.type is Path or action.dest in ("recipe", "recipes", "files"):
            folder = action.metavar == "DIR"
            action.complete = shtab.DIRECTORY if folder else shtab.FILE  # type: ignore[attr-defined]
