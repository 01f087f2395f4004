"""Ending on request: SIGTERM and Ctrl-C, at once or, while a model trains, when the step is done and saved."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end. `exit_code` is 128 plus the signal's number, as shells count it."""

    def __init__(self, number: int, where: str = "") -> None:
        super().__init__(f"{_WORDS[signal.Signals(number)]}{where}")
        self.exit_code = 128 + number


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Inside, SIGTERM raises `Stopped` as Ctrl-C raises KeyboardInterrupt, so that what is open is closed."""
    if threading.current_thread() is not threading.main_thread():  # only that one can handle signals
        yield
        return
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked child ends as it would have without us
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopAfterStep:
    """Inside, the first SIGTERM or Ctrl-C only sets `number`; whoever is inside saves and raises. A second one raises.

    Signals that are ignored (as nohup and shells do for processes in the background) stay ignored. On leaving without
    an error, a signal that nobody saw raises.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._owner = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopAfterStep:
        if threading.current_thread() is threading.main_thread():
            for number in _WORDS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None and self.number is not None:
            raise Stopped(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a data loading worker: it serves until the process that reads it ends
            return
        if self.number is not None:
            raise Stopped(number)
        self.number = number
        # print() may be what the signal came in the middle of.
        os.write(2, b"stopping: this step is finished and saved first; once more to stop at once\n")
