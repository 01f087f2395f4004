"""What runs have in common: a baseline or stage of the same key is computed by one of them and linked by the others."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from act.run.atomic import PARTIAL


def publish(folder: Path, key: str, shared: Path | None) -> None:
    """Offer the finished `folder` of `key` to other runs; nothing happens where it is offered already."""
    if shared is None or (shared / key).exists():
        return
    shared.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=shared) as name:
        copy = Path(name) / key
        shutil.copytree(folder, copy, copy_function=_link)
        if not (shared / key).exists():
            try:
                copy.rename(shared / key)
            except OSError:  # another process was faster; what it offers is the same
                return


def adopt(folder: Path, key: str, shared: Path | None) -> bool:
    """Put what another run offers for `key` in the place of `folder`; whether there was anything."""
    if shared is None or not (shared / key).is_dir():
        return False
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder.parent) as name:
        copy = Path(name) / key
        shutil.copytree(shared / key, copy, copy_function=_link)
        shutil.rmtree(folder, ignore_errors=True)
        copy.rename(folder)
    return True


def withdraw(key: str, shared: Path | None) -> None:
    """Take what is offered for `key` away."""
    if shared is not None:
        shutil.rmtree(shared / key, ignore_errors=True)


def _link(source: str, target: str) -> None:
    """A second name of a file where the file system has those, else a copy.

    Files of a run are replaced, never written in place, so a link cannot change under its other owners.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
