"""`vitcompress verify`: does a run folder hold what its report says?"""

from __future__ import annotations

import argparse
from pathlib import Path

from act.cli.common import json_argument
from act.cli.output import print_json, table

HELP = "check that an artifact is what its report says"
DESCRIPTION = """\
Checks an artifact again from its files alone: checksums, 2:4 along K on the integer weights, symmetric Q/DQ, and the
same numbers from torch and from the exported file. Any single flipped weight is found."""
EPILOG = """\
exit codes: 0 everything holds; 3 something does not; 2 DIR holds no artifact

examples:
  vitcompress verify runs/quickstart
  vitcompress verify runs/quickstart/artifact --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="a run folder, or the artifact folder in it")
    json_argument(parser)


def command(args: argparse.Namespace) -> int:
    """Check and print; 3 when a check fails."""
    from act.verify.folder import verify_folder

    checks = verify_folder(args.folder)
    holds = all(check.holds for check in checks)
    if args.json:
        found = [{"name": check.name, "holds": check.holds, "detail": check.detail} for check in checks]
        print_json({"folder": str(args.folder), "holds": holds, "checks": found})
    else:
        rows = [[check.name, "holds" if check.holds else "FAILS", check.detail] for check in checks]
        failed = sum(not check.holds for check in checks)
        verdict = "everything holds" if holds else f"{failed} of {len(checks)} checks FAIL"
        table(f"{args.folder}: {verdict}", ["check", "", "detail"], rows)
    return 0 if holds else 3
