"""Recipes from elsewhere, kept in the user's cache by their hash: HASH/NAME.yaml with HASH/NAME.lock.json beside it.

The same content from another address lies in a folder HASH-ADDRESS.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from act.errors import InputError
from act.run.atomic import write_bytes, write_json

_FULL_NAME = re.compile(r"([A-Za-z0-9][\w.-]*?)(?:@([0-9a-f]{6,64}))?", re.ASCII)
_LOCK = ".lock.json"


@dataclass(frozen=True)
class Lock:
    """Where a recipe came from: `source` (an address), the commit `revision` (None: none), `sha256`, and when."""

    source: str
    revision: str | None
    sha256: str
    pulled: str  # UTC


@dataclass(frozen=True)
class Pulled:
    """A recipe of the cache."""

    path: Path
    lock: Lock

    @property
    def name(self) -> str:
        """The name that means this one whatever else was pulled."""
        return f"{self.path.stem}@{self.lock.sha256[:12]}"


def cache_dir() -> Path:
    """The folder of pulled recipes."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "vitcompress" / "recipes"


def keep(data: bytes, name: str, source: str, revision: str | None) -> Pulled:
    """Write a recipe and its lock to the cache; the lock comes last, since it is what says that the recipe is there."""
    digest = hashlib.sha256(data).hexdigest()
    lock = Lock(source, revision, digest, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    path = cache_dir() / digest / f"{name}.yaml"
    before = pulled_at(path)
    if before is not None and before.lock.source != source:
        # Each address keeps a lock of its own, by which a later change of its content is noticed.
        path = cache_dir() / f"{digest}-{hashlib.sha256(source.encode()).hexdigest()[:12]}" / path.name
    found = Pulled(path, lock)
    try:
        write_bytes(found.path, data)
        write_json(found.path.with_suffix(_LOCK), asdict(found.lock))
    except OSError as error:
        raise InputError(f"{found.path}: cannot be written: {error.strerror or error}; set XDG_CACHE_HOME") from error
    return found


def list_pulled() -> list[Pulled]:
    """Every pulled recipe, the newest first; InputError for a lock that cannot be read."""
    found = [
        Pulled(file.with_name(file.name.removesuffix(_LOCK) + ".yaml"), _read_lock(file))
        for file in sorted(cache_dir().glob(f"*/*{_LOCK}"))
    ]
    return sorted(found, key=lambda item: item.lock.pulled, reverse=True)


def pulled_at(path: Path) -> Pulled | None:
    """The pulled recipe whose file is `path`, None for any other file; InputError for a lock that cannot be read."""
    file = path.with_suffix(_LOCK)
    return Pulled(path, _read_lock(file)) if path.is_relative_to(cache_dir()) and file.is_file() else None


def _read_lock(file: Path) -> Lock:
    try:
        lock = Lock(**json.loads(file.read_text(encoding="utf-8")))
        if not all(isinstance(value, str) for value in (lock.source, lock.sha256, lock.pulled)):
            raise TypeError("its values are no texts")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read: {error}; remove it and pull the recipe again") from error
    return lock


def find_pulled(name: str) -> Pulled | None:
    """The pulled recipe `NAME` or `NAME@HASH` (six digits or more), None if there is none.

    InputError if the name means several, or the file is no longer what was pulled.
    """
    match = _FULL_NAME.fullmatch(name)
    if match is None:
        return None
    stem, start = match.groups()
    found = {item.lock.sha256: item for item in list_pulled() if item.path.stem == stem}
    chosen = [item for digest, item in found.items() if digest.startswith(start or "")]
    if len(chosen) > 1:
        raise InputError(
            f"{name}: several recipes of this name were pulled; write {' or '.join(i.name for i in chosen)}"
        )
    return checked(chosen[0]) if chosen else None


def checked(item: Pulled) -> Pulled:
    """`item`, if its file still has the content that was pulled; InputError otherwise."""
    try:
        digest = hashlib.sha256(item.path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{item.path}: cannot be read: {error.strerror}; pull {item.lock.source} again") from error
    if digest != item.lock.sha256:
        raise InputError(f"{item.path}: changed since it was pulled; remove it and pull {item.lock.source} again")
    return item
