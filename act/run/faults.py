"""What failed, in words, when it was neither the user's input nor this program: memory, workers, GPUs, disks."""

from __future__ import annotations

import errno
import re

import torch

from act.errors import AGAIN, ActError, FaultError

_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (exited unexpectedly|is killed by signal: .*)")
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED")
_GPU = re.compile(r"(CUDA error|CUDA driver error|cuDNN error|CUBLAS_STATUS|NCCL error)[^\n]*")

_SYSTEM = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.EMFILE, errno.ENFILE),
}


def no_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def explain(error: BaseException) -> str | None:
    """The cause and what to do about it, in a line without an end; None for anything that is no such fault."""
    text = str(error)
    if isinstance(error, ActError):
        return None
    if no_memory(error):
        return f"out of memory ({_first_line(text) or type(error).__name__})"
    if isinstance(error, RuntimeError) and (worker := _WORKER.search(text)):
        return (
            f"a data loading worker {worker[1].rstrip('. ')}, most often because the machine ran out of memory or of "
            "/dev/shm; --force data.workers=0 (or fewer than before) loads without, and keeps what was trained"
        )
    if isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and _GPU.search(text)):
        return f"the GPU failed ({_first_line(text)}); when it is back (see nvidia-smi), the same command goes on"
    if isinstance(error, OSError) and error.errno in _SYSTEM:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}; {AGAIN}"
    return None


def as_fault(error: BaseException) -> BaseException:
    """`error`, or a FaultError that explains it."""
    reason = explain(error)
    return error if reason is None else FaultError(reason)


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0][:200].rstrip(". ")
