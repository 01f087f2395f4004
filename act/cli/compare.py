"""`vitcompress compare`: finished runs side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from act.cli.common import json_argument
from act.cli.output import note, print_json, table, warn
from act.errors import InputError

if TYPE_CHECKING:
    from act.run.compare import Run

HELP = "show finished runs side by side, and how their recipes differ"
DESCRIPTION = """\
Reads the reports of finished runs and shows accuracy, size, speed-ups, stages and seconds of each beside the others,
and the keys in which their recipes differ. With -o also a page with pictures, in the style of report.html. Nothing is
measured anew."""
EPILOG = """\
examples:
  vitcompress compare runs/first runs/second
  vitcompress compare runs/* -o compare.html
  vitcompress compare runs/first runs/second --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folders of finished runs, two or more")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="also write a page, such as compare.html")
    json_argument(parser)


def command(args: argparse.Namespace) -> int:
    """Read, compare and print."""
    if args.output is not None and args.output.is_dir():
        raise InputError(f"--output: {args.output}: a folder; name a file, such as {args.output / 'compare.html'}")
    from act.run.compare import as_json, differences, read_runs, rows

    runs, remarks = read_runs(args.runs)
    if args.output is not None:
        _write(args.output, runs, remarks)
    if args.json:
        print_json(as_json(runs, remarks))
        return 0
    columns, cells = rows(runs)
    table(f"{len(runs)} runs", columns, cells, [name for name in columns if name not in ("run", "file", "stages")])
    different = [[key, *values] for key, values in differences(runs)]
    if different:
        print()
        table("what differs in the recipes", ["key", *(run.name for run in runs)], different)
    else:
        print("the recipes do not differ")
    for text in remarks:
        warn(text)
    if args.output is not None:
        note(f"page: {args.output}")
    return 0


def _write(path: Path, runs: Sequence[Run], remarks: Sequence[str]) -> None:
    from act.run.atomic import write_text
    from act.run.page.compare import compare_page

    page = compare_page(runs, remarks)
    try:
        write_text(path, page)
    except OSError as error:
        raise InputError(f"--output: {path}: cannot be written ({error.strerror}); choose another file") from None
