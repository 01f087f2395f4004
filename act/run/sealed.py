"""Records that vouch for themselves and for the files they go with, by SHA-256.

A folder of results is complete when its record is there, and the record is written last. What a crash of the machine, a
bad disk or an editor did to the record or to one of its files afterwards is found before anything of it is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from act.run.atomic import sha256_file, write_json

_SEAL, _FILES = "sha256", "files"


class Damaged(Exception):
    """A record, or a file that it vouches for, is not what was written; the text says which and how."""


def write_sealed(path: Path, record: Mapping[str, Any], files: Iterable[str]) -> None:
    """Write `record` to `path` as JSON, with the hashes of `files` (paths relative to its folder) and its own."""
    hashes = {name: sha256_file(path.parent / name) for name in files}
    content = json.loads(json.dumps({**record, _FILES: hashes}))
    write_json(path, {**content, _SEAL: _digest(content)})


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The record that `write_sealed` wrote, None when there is none.

    A record of an earlier version, which has no hashes at all, is taken as it is.

    Raises:
        Damaged: it cannot be read, was altered, or a file that it vouches for is missing or was altered.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise Damaged(f"{path} is not the record that was written")
    if _SEAL not in content and _FILES not in content:
        return content
    if content.pop(_SEAL, None) != _digest(content):
        raise Damaged(f"{path} was altered")
    for name, expected in content.pop(_FILES).items():
        file = path.parent / name
        try:
            found = sha256_file(file)
        except OSError as error:
            raise Damaged(f"{file} cannot be read ({error.strerror})") from None
        if found != expected:
            raise Damaged(f"{file} was altered or cut short")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
