"""One process at a time in a run folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from act.errors import InputError

LOCK = ".lock"
_held: weakref.WeakSet[IO[str]] = weakref.WeakSet()


@contextlib.contextmanager
def held(folder: Path) -> Iterator[str | None]:
    """Hold `folder`, which is made, for this process. Gives a note when its last process was killed, else None.

    The lock is on the open file, so it ends with the process, however that ends. The file says whose it is, and is
    empty when its owner let go by itself.

    Raises:
        InputError: another process, which is named, holds it; or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--dir: {folder} cannot be written ({error.strerror}); choose another folder") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise InputError(
                    f"--dir: {folder} cannot be locked ({error.strerror}); choose a folder on another disk"
                ) from None
            who = _owner(folder) or "another process"
            raise InputError(
                f"--dir: {folder} is in use by {who}; wait for it to end, or choose another folder"
            ) from None
        _held.add(file)
        last = _owner(folder)
        file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started}))
        file.flush()
        try:
            yield None if last is None else f"taken over from {last}, which was killed"
        finally:
            file.truncate(0)
            fcntl.flock(file, fcntl.LOCK_UN)


def _owner(folder: Path) -> str | None:
    try:
        owner = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']} since {owner['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _let_go() -> None:
    for file in list(_held):
        file.close()


# A forked child (a data loading worker) has the open file as well, and would hold the lock after its parent's death.
os.register_at_fork(after_in_child=_let_go)
