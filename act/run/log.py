"""The run's event log: append-only JSON lines for programs, one readable line for people."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from act.errors import StorageError
from act.verbosity import is_quiet

ALWAYS = ("warning", "error")  # events that are printed even where progress is not


class EventLog:
    """Callable `log(event, message, **fields)`.

    Appends `{"time", "event", "message"?, **fields}` to `path` (time in seconds since the epoch) and prints
    `message`, when there is one; where it is quiet, see `act.verbosity`, only that of warnings and errors. Only the
    main process writes: with `main=False` every call does nothing. With `path=None` events are printed but not kept.
    """

    def __init__(self, path: Path | None, main: bool = True) -> None:
        self.path = path
        self.main = main
        self.started = time.monotonic()
        if main and path is not None:
            _end_last_line(path)
        # Messages go to stderr, so that a command's own output (JSON, a table) can be piped.
        self.console = Console(stderr=True, highlight=False) if sys.stderr.isatty() else None

    def __call__(self, event: str, message: str = "", **fields: Any) -> None:
        if not self.main:
            return
        if self.path is not None:
            record: dict[str, Any] = {"time": round(time.time(), 3), "event": event}
            if message:
                record["message"] = message
            self._append(record | {key: _plain(value) for key, value in fields.items()})
        if message and (event in ALWAYS or not is_quiet()):
            self._print(event, message)

    def _append(self, record: dict[str, Any]) -> None:
        assert self.path is not None
        # One write call of one line in append mode: a killed run can lose its last line, not spoil earlier ones.
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise StorageError(self.path, error.strerror or str(error)) from error

    def _print(self, event: str, message: str) -> None:
        elapsed = time.monotonic() - self.started
        stamp = f"{int(elapsed // 60):3d}:{int(elapsed % 60):02d}"
        if self.console is None:
            print(f"{stamp} {message}", file=sys.stderr, flush=True)
            return
        style = {"warning": "yellow", "error": "red", "stage": "bold cyan", "result": "bold green"}.get(event, "")
        self.console.print(Text.assemble((stamp, "dim"), " ", (message, style)))


def _end_last_line(path: Path) -> None:
    """Close a line that a kill cut short, so that the next event does not join it."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: tensors of one element and numpy scalars as numbers, NaN and infinity as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if isinstance(value, int | bool | str) else str(value)


def read_events(path: Path) -> list[dict[str, Any]]:
    """Every event of an `events.jsonl`, oldest first; a last line cut short by a kill is left out."""
    events: list[dict[str, Any]] = []
    if not path.is_file():
        return events
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events
