"""Memory that a computation fills again and again, kept by the process and in large pages.

A training step on a CPU takes gigabytes and frees them. glibc gives large blocks back to the kernel at once, so that
the next step faults them in anew, 4 KiB at a time, and so many small pages keep the processor busy with addresses.
While `large_pages` is active, freed memory stays with the process, in pages of 2 MiB where the kernel allows them
(/sys/kernel/mm/transparent_hugepage/enabled: always or madvise).
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SWITCH = "VITCOMPRESS_LARGE_PAGES"  # 0: leave memory as it is
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of mallopt(3)
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}  # where glibc ends by itself
_HUGEPAGE = 14  # of madvise(2)
_MAPS, _MEMORY = Path("/proc/self/maps"), Path("/proc/meminfo")
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_active: ctypes.CDLL | None = None


@contextmanager
def large_pages() -> Iterator[None]:
    """Keep freed memory, in large pages; afterwards it is given back. Nothing changes without glibc or on request."""
    global _active
    libc = None if _active is not None else _glibc()
    if libc is None:
        yield
        return
    _active = libc
    try:
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, -1)
        _reserve(libc)
        yield
    finally:
        for option, value in _USUAL.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)
        _active = None


def give_back() -> None:
    """Return to the kernel what is free now, so that peaks measured from here on are those of what follows."""
    if _active is not None:
        _active.malloc_trim(0)
        _reserve(_active)


def why_not() -> str | None:
    """Why memory does not come in large pages here; None if it does."""
    if (reason := _left_alone()) is not None:
        return reason
    try:
        allowed = "[never]" not in _KERNEL.read_text()
    except OSError:
        allowed = False
    return None if allowed else f"the kernel has none; write madvise to {_KERNEL}. Freed memory is kept all the same"


def _left_alone() -> str | None:
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    return None if sys.platform == "linux" and platform.libc_ver()[0] == "glibc" else "only on Linux with glibc"


def _glibc() -> ctypes.CDLL | None:
    if _left_alone() is not None:
        return None
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


def _reserve(libc: ctypes.CDLL) -> None:
    """Grow the heap by addresses, not by memory, and ask for large pages wherever it will be filled."""
    try:
        libc.free(libc.malloc(_available_bytes()))
        heap = [line.split()[0] for line in _MAPS.read_text().splitlines() if line.endswith("[heap]")]
    except OSError:  # no /proc: what is kept is kept in small pages
        return
    for span in heap:
        start, end = (int(address, 16) for address in span.split("-"))
        libc.madvise(start, end - start, _HUGEPAGE)


def _available_bytes() -> int:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMORY.read_text(), re.MULTILINE)
    return 0 if found is None else int(found[1]) * 1024
