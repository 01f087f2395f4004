"""Files that may come from strangers: bounded, and nothing outside their folder."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from act.errors import InputError

MAX_JSON = 64 * 1024 * 1024
MAX_HEADER = 16 * 1024 * 1024
_MOST_FILES = 100_000


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; InputError if it is missing, no plain file, too large, or no JSON."""
    file = Path(path)
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise InputError(f"{file}: cannot be read: not a plain file")
        with file.open("rb") as stream:
            data = stream.read(MAX_JSON + 1)
        if len(data) > MAX_JSON:
            raise InputError(f"{file}: cannot be read: larger than {MAX_JSON // 2**20} MiB")
        return json.loads(data.decode("utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from error


def check_header(path: str | Path) -> None:
    """InputError for a safetensors file whose header is larger than the file or than any real one."""
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    with file.open("rb") as stream:
        start = stream.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(file.stat().st_size - 8, MAX_HEADER):
        raise InputError(f"{file}: not a readable safetensors file: its header is said to have {length} bytes")


def check_contained(folder: str | Path) -> None:
    """InputError if a folder holds a link that leaves it, or anything that is neither file, folder nor link."""
    root = Path(folder).resolve()
    count = 0
    for parent, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(parent) / name
            shown = path.relative_to(root).as_posix()
            kind = path.lstat().st_mode
            count += 1
            if count > _MOST_FILES:
                raise InputError(f"{folder}: more than {_MOST_FILES} files; name the folder of one run")
            if stat.S_ISLNK(kind) and not path.resolve().is_relative_to(root):
                raise InputError(f"{folder}: {shown}: a link that leads out of the folder; replace it by its file")
            if not (stat.S_ISLNK(kind) or stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                raise InputError(f"{folder}: {shown}: neither a file nor a folder; remove it")
