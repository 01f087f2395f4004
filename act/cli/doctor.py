"""`vitcompress doctor`: what is installed, what can run here, and why the rest cannot."""

from __future__ import annotations

import argparse
import dataclasses

from act.cli.common import json_argument
from act.cli.output import print_json, table

HELP = "show what is installed, which runtimes can run here, and why others cannot"
DESCRIPTION = "Looks at the installed packages, the processor, the GPU, the runtimes and the reference benchmarks."
EPILOG = """\
exit codes: 0 everything that is needed works; 1 something needed is missing or broken

examples:
  vitcompress doctor
  vitcompress doctor --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    json_argument(parser)


def command(args: argparse.Namespace) -> int:
    """Print the findings; 1 when something that is needed does not work."""
    from act.cli.diagnosis import diagnose

    findings = diagnose()
    if args.json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        rows = [[finding.name, finding.state, finding.detail] for finding in findings]
        table("vitcompress doctor", ["what", "", "detail"], rows)
    return 1 if any(finding.state == "BROKEN" for finding in findings) else 0
