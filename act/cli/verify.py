"""`vitcompress verify`: does a run folder hold what its report says, and does a file keep a runtime's rules?"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from act.cli.common import json_argument
from act.cli.output import print_json, table
from act.errors import InputError
from act.verbosity import is_quiet

HELP = "check that an artifact is what its report says, or a file against TensorRT's rules"
DESCRIPTION = """\
Checks an artifact again from its files alone: checksums, 2:4 along K on the integer weights, symmetric Q/DQ, and the
same numbers from torch and from the exported file. Any single flipped weight is found.

With --target tensorrt, checks one ONNX file (or the one in a folder) against the rules of TensorRT 10 and 11 instead;
TensorRT need not be installed. Errors are what it refuses or what the file wrongly claims, warnings cost speed."""
EPILOG = """\
exit codes: 0 everything holds (warnings may be left); 3 something does not; 2 PATH holds no artifact

examples:
  vitcompress verify runs/quickstart
  vitcompress verify runs/quickstart/artifact --json
  vitcompress verify runs/mine --target tensorrt
  vitcompress verify model.onnx --target tensorrt --sparse 'blocks.*.mlp.*'
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("path", metavar="PATH", type=Path, help="a run folder or the artifact folder in it")
    parser.add_argument(
        "--target", choices=("tensorrt",), help="check an ONNX file or folder against its rules instead"
    )
    parser.add_argument(
        "--sparse", metavar="GLOB", action="append", default=[],
        help="with --target: layers that must be 2:4, besides those that the file says are; may be given again",
    )  # fmt: skip
    json_argument(parser)


def command(args: argparse.Namespace) -> int:
    """Check and print; 3 when a check fails."""
    if args.target is not None:
        return _lint(args)
    if args.sparse:
        raise InputError("--sparse: given without --target tensorrt, whose rules it is for")
    from act.verify.folder import verify_folder

    checks = verify_folder(args.path)
    holds = all(check.holds for check in checks)
    if args.json:
        found = [{"name": check.name, "holds": check.holds, "detail": check.detail} for check in checks]
        print_json({"folder": str(args.path), "holds": holds, "checks": found})
    else:
        rows = [[check.name, "holds" if check.holds else "FAILS", check.detail] for check in checks]
        failed = sum(not check.holds for check in checks)
        verdict = "everything holds" if holds else f"{failed} of {len(checks)} checks FAIL"
        shown = [row for row in rows if row[1] == "FAILS"] if is_quiet() else rows
        table(f"{args.path}: {verdict}", ["check", "", "detail"], shown)
    return 0 if holds else 3


def _lint(args: argparse.Namespace) -> int:
    from act.verify.tensorrt import ERROR, lint_file, pick_file

    path = pick_file(args.path)
    found = lint_file(path, args.sparse)
    errors = sum(item.level == ERROR for item in found)
    if args.json:
        items = [dataclasses.asdict(item) for item in found]
        print_json({"file": str(path), "target": args.target, "errors": errors, "findings": items})
    elif found:
        verdict = f"{errors} errors, {len(found) - errors} warnings for {args.target}"
        rows = [[item.level, item.rule, item.node, item.text] for item in found]
        table(f"{path}: {verdict}", ["level", "rule", "where", "what"], rows)
    else:
        print(f"{path}: nothing against the rules of {args.target}")
    return 3 if errors else 0
