"""Recipes written to files of the user's own."""

from __future__ import annotations

from pathlib import Path

from act.errors import InputError
from act.run.atomic import write_text


def write_new(target: Path, text: str, force: bool = False) -> None:
    """Write `text` to `target`, atomically; InputError if it exists already (unless `force`) or cannot be written."""
    if target.exists() and not force:
        raise InputError(f"{target}: exists; choose another name, or overwrite it with --force")
    if not target.parent.is_dir():
        raise InputError(f"{target.parent}: no such folder")
    try:
        write_text(target, text)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error
