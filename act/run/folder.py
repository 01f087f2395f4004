"""The run folder: its layout, its lock, and whether it belongs to the recipe at hand."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from act.errors import InputError
from act.recipe.dump import recipe_to_dict
from act.run.atomic import write_json, write_text
from act.run.environment import describe
from act.run.shared import adopt

if TYPE_CHECKING:
    from act.recipe.schema import Recipe

LOCK = ".lock"
SETTINGS = "settings.json"
NO_MATTER = ("name", "description", "results")


class RunFolder:
    """`DIR` with recipe.yaml, environment.json, events.jsonl, baseline/, stages/NN-name/ and artifact/.

    `shared` is a folder in which several runs keep what they have in common, see act/run/shared.py.
    """

    def __init__(self, path: str | Path, shared: Path | None = None) -> None:
        self.path = Path(path)
        self.shared = shared
        self._lock: TextIO | None = None

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def baseline(self) -> Path:
        return self.path / "baseline"

    @property
    def artifact(self) -> Path:
        return self.path / "artifact"

    def stage(self, index: int, name: str) -> Path:
        """The folder of a stage; `index` counts from 1."""
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", "-", name).lower()
        return self.path / "stages" / f"{index:02d}-{words}"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; InputError naming the process that already does."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # The lock is on the open file, so it ends with the process however that ends; the file may stay.
            lock = (self.path / LOCK).open("a+")
        except OSError as error:
            raise InputError(
                f"--dir: {self.path} cannot be written ({error.strerror}); choose another folder"
            ) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(self._busy()) from None
            lock.truncate(0)
            started = time.strftime("%Y-%m-%d %H:%M:%S")
            lock.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started}))
            lock.flush()
            try:
                yield
            finally:
                lock.truncate(0)  # a folder that is given away names no process and no host

    def _busy(self) -> str:
        try:
            owner = json.loads((self.path / LOCK).read_text())
            who = f"process {owner['pid']} on {owner['host']} since {owner['started']}"
        except (OSError, ValueError, KeyError):
            who = "another process"
        return f"--dir: {self.path} is in use by {who}; wait for it to end, or choose another folder"

    def claim(self, recipe: Recipe, text: str, force: bool = False) -> bool:
        """Make the folder this recipe's; returns whether it already was (the run continues).

        `text` is the resolved recipe as YAML. InputError when the folder holds a run of another recipe, naming the
        settings that differ, unless `force`: then stages whose inputs did not change are still used.
        """
        settings = comparable(recipe)
        previous = self._previous()
        if previous is None and self.path.is_dir() and any(item.name != LOCK for item in self.path.iterdir()):
            raise InputError(
                f"--dir: {self.path} has files but no run of vitcompress in it; choose an empty or a new folder"
            )
        if previous is not None and previous != settings and not force:
            raise InputError(
                f"--dir: {self.path} holds a run of another recipe ({differences(previous, settings)}); "
                "choose another --dir, or give --force to reuse what did not change and replace the rest"
            )
        # The settings come first: they are what marks the folder as a run, should the process die in between.
        write_json(self.path / SETTINGS, settings)
        write_text(self.path / "recipe.yaml", text)
        write_json(self.path / "environment.json", describe())
        return previous == settings

    def _previous(self) -> dict[str, Any] | None:
        file = self.path / SETTINGS
        if not file.is_file():
            return None
        found = _read(file)
        if not found:
            raise InputError(f"--dir: {file} is damaged; choose another folder")
        return found


def open_stage(folder: Path, key: str, shared: Path | None = None) -> dict[str, Any] | None:
    """Open a stage's folder for the inputs hashed in `key`.

    Returns the stage's record when it is finished, here or in `shared` by another run. Otherwise the folder exists
    afterwards and holds nothing but what an interrupted run with the same key left there; results of other inputs are
    removed.
    """
    if _read(folder / "key.json").get("key") != key:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / "key.json", {"key": key})
    done = _read(folder / "done.json")
    if done.get("key") != key and adopt(folder, key, shared):
        done = _read(folder / "done.json")
    return done if done.get("key") == key else None


def comparable(recipe: Recipe) -> dict[str, Any]:
    """The settings that make two recipes different: everything but name, description and measured results."""
    return {key: value for key, value in recipe_to_dict(recipe).items() if key not in NO_MATTER}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], limit: int = 5) -> str:
    """`key: old -> new` for the first settings that differ between two nested mappings."""
    before, after = dict(_flat(old)), dict(_flat(new))
    keys = [key for key in sorted({*before, *after}) if before.get(key, "unset") != after.get(key, "unset")]
    shown = [f"{key}: {before.get(key, 'unset')} -> {after.get(key, 'unset')}" for key in keys[:limit]]
    return "; ".join(shown) + (f"; and {len(keys) - limit} more" if len(keys) > limit else "")


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
