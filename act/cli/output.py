"""What verbs print: tables (rich on a terminal, plain aligned text elsewhere), notes, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from act.steering import harmless
from act.verbosity import is_quiet


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()) -> None:
    """Print rows under their columns; the columns named in `right` hold numbers."""
    cells = [[harmless(str(cell)) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich(title, columns, cells, right)
        return
    print(title)
    widths = [max(len(line[index]) for line in [list(columns), *cells]) for index in range(len(columns))]
    for line in [list(columns), *cells]:
        parts = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        print(("  " + "  ".join(parts)).rstrip())


def _rich(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for column in columns:
        shown.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console(highlight=False).print(shown)


_STYLES = {
    "ok": "green",
    "holds": "green",
    "FAILS": "bold red",
    "BROKEN": "bold red",
    "missing": "yellow",
    "no": "yellow",
}


def note(text: str) -> None:
    """A remark on stderr, so that stdout stays readable by programs; a quiet command has none."""
    if not is_quiet():
        print(f"note: {harmless(text)}", file=sys.stderr)


def warn(text: str) -> None:
    """A warning on stderr."""
    print(f"warning: {harmless(text)}", file=sys.stderr)


def print_json(value: Any) -> None:
    """`value` as indented JSON."""
    print(json.dumps(value, indent=2))


def size(count: int) -> str:
    """Bytes in a unit that reads well (1 MB = 10^6 bytes)."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} B"


def number(count: int) -> str:
    """A count in a unit that reads well."""
    for unit, scale in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return str(count)
