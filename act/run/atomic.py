"""Files that are either wholly there or not at all.

Every file of a run is written to a temporary name in its own folder, flushed to the disk and renamed, so that a
run killed at any moment leaves the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from act.errors import StorageError

PARTIAL = ".part-"  # begins the names of files and folders that are being written


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it becomes `path`, on an error it is removed.

    The temporary file keeps the suffix of `path`, since some writers choose their format by it. Missing parent
    folders are made. What a killed process leaves is taken away by `remove_partial`.

    Raises:
        StorageError: the disk is full, read-only or broken, or whatever else the system refused.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{PARTIAL}{target.stem}-", suffix=target.suffix, dir=target.parent)
        temporary = Path(name)
        os.close(handle)
        yield temporary
        # mkstemp makes private files, and so do some writers; results are meant to be read like any other file.
        temporary.chmod(0o666 & ~_umask())
        move(temporary, target)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        reason = _refusal(error)
        if reason is None:
            raise
        raise StorageError(target, reason) from error


def move(source: Path, target: Path) -> None:
    """Put a finished file in the place of `target` on the same disk, so that not even a power failure tears it."""
    _sync(source)
    os.replace(source, target)
    _sync(target.parent)


def remove_partial(folder: Path) -> int:
    """Take away what processes that were killed had not finished writing under `folder`; the number of such things.

    Only for a folder in which no other process writes.
    """
    found = sorted(folder.rglob(f"{PARTIAL}*"))
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return len(found)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` atomically as indented JSON; a NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's content, as 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refusal(error: BaseException) -> str | None:
    """Why the system did not take what was written; None for errors of another kind."""
    if isinstance(error, OSError):
        return error.strerror or str(error)  # NumPy raises one without a number when a write falls short
    # safetensors writes by itself and raises errors of its own, with the system's number in the text.
    number = re.search(r"os error (\d+)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return os.strerror(int(number[1])) if number else None


def _sync(path: Path) -> None:
    """Flush a file, or a folder's entries after a rename, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
