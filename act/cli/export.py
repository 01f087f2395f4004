"""`vitcompress export`: add a file format to a finished run."""

from __future__ import annotations

import argparse
from pathlib import Path

from act.errors import InputError

HELP = "add a file for another runtime to a finished run"
DESCRIPTION = """\
Writes a finished run's model in further formats, opens and scores each file, compares it with the torch model, and
brings the run's report and manifest up to date. Finished stages are kept; nothing is trained again."""
EPILOG = """\
exit codes: as for run: 0 goals met, 3 goals missed, 2 bad input

examples:
  vitcompress export runs/quickstart --to tensorrt
  vitcompress export runs/quickstart --to openvino --to tensorrt export.benchmark=false
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("dir", metavar="DIR", type=Path, help="the folder of a finished run")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="changes to export or target")
    parser.add_argument(
        "--to", metavar="FORMAT", action="append", required=True, help="a format to add; may be given again"
    )


def command(args: argparse.Namespace) -> int:
    """Export; the exit code is that of the run."""
    for name in ("recipe.yaml", "report.json"):
        if not (args.dir / name).is_file():
            raise InputError(
                f"{args.dir}: has no {name}, so it is no finished run; finish it with: vitcompress run RECIPE --dir DIR"
            )
    other = [word for word in args.overrides if word.partition("=")[0].split(".")[0] not in ("export", "target")]
    if other:
        raise InputError(f"{other[0]}: would change the run itself; allowed here: export.* and target.*")
    from act.recipe.load import read_recipe
    from act.run.formats import in_order
    from act.run.runner import run

    recipe = read_recipe(args.dir / "recipe.yaml", args.overrides).recipe
    recipe.export.formats = in_order([*recipe.export.formats, *args.to])
    if recipe.model.name is None:
        raise InputError(
            f"{args.dir}: its model came as a module; call run(recipe, folder, model) of act.run.runner with that "
            "module and the formats in recipe.export.formats"
        )
    return run(recipe, args.dir, force=True).exit_code
