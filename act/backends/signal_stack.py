"""Keeps the thread's alternate signal stack through code that replaces it.

Compiling a model in OpenVINO gives the calling thread a signal stack of the model's own, and freeing the model brings
back the one before. Two models freed in the order they were made leave the thread with a stack that is unmapped, and
the next signal (a DataLoader worker that ends, say) kills the process.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """stack_t of <signal.h> on Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Afterwards the calling thread has the signal stack it had before; nothing is done on other systems than Linux."""
    if not sys.platform.startswith("linux"):
        yield
        return
    library, before = ctypes.CDLL(None), _Stack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)
