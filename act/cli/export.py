"""`vitcompress export`: add a file format to a finished run."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from act.cli.common import finish, json_argument
from act.cli.output import print_json, table
from act.errors import InputError

PACKED_FILE = "model.packed.safetensors"  # of act.storage.file, whose imports --help must not wait for

HELP = "add a file for another runtime to a finished run, or to a packed file"
DESCRIPTION = """\
Writes a finished run's model in further formats, opens and scores each file, compares it with the torch model, and
brings the run's report and manifest up to date. Finished stages are kept; nothing is trained again.

DIR may also hold no more than model.packed.safetensors and its arch.json: the model is rebuilt from them, each file is
written beside them, opened, and compared with the torch model on images of noise."""
EPILOG = """\
exit codes: as for run: 0 goals met, 3 goals missed, 2 bad input

examples:
  vitcompress export runs/quickstart --to tensorrt
  vitcompress export runs/quickstart --to openvino --to tensorrt export.benchmark=false
  vitcompress export folder_with_packed_file --to onnx
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("dir", metavar="DIR", type=Path, help="the folder of a finished run or of a packed file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="changes to export or target")
    parser.add_argument(
        "--to", metavar="FORMAT", action="append", required=True, help="a format to add; may be given again"
    )
    json_argument(parser)


def command(args: argparse.Namespace) -> int:
    """Export; the exit code is that of the run."""
    from act.run.reading import check_contained

    other = [word for word in args.overrides if word.partition("=")[0].split(".")[0] not in ("export", "target")]
    if other:
        raise InputError(f"{other[0]}: would change the run itself; allowed here: export.* and target.*")
    if args.dir.is_dir():
        check_contained(args.dir)
    # The artifact folder of a run has a manifest, and is exported to through its run.
    if (args.dir / PACKED_FILE).is_file() and not (args.dir / "manifest.json").is_file():
        return _from_packed(args)
    for name in ("recipe.yaml", "report.json"):
        if not (args.dir / name).is_file():
            raise InputError(
                f"{args.dir}: has no {name}, so it is no finished run; finish it with: vitcompress run RECIPE --dir DIR"
            )
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
    return finish(run(recipe, args.dir, may_change=("export", "target")), args.json)


def _from_packed(args: argparse.Namespace) -> int:
    from act.run.from_packed import export_packed

    found = export_packed(args.dir, args.to, args.overrides)
    if args.json:
        print_json([dataclasses.asdict(item) | {"path": str(item.path)} for item in found])
        return 0
    rows = [
        [item.format, item.path.name, f"{item.bytes:,}", f"{item.agreement:.2f} %", f"{item.max_abs_diff:.2g}"]
        for item in found
    ]
    head = ["format", "file", "bytes", "agrees with torch", "largest difference"]
    table(f"{args.dir}: compared on images of noise", head, rows, right=head[2:])
    return 0
