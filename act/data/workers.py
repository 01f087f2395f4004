"""Data loading workers outlive a signal that is meant for the run."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

_THREADS = Path("/proc/self/task")


def heed_reader_only(worker: int) -> None:
    """A DataLoader's `worker_init_fn`: of all SIGTERMs, only one from the process that reads this worker ends it.

    Slurm, systemd and a shell's `kill` of a process group signal every process of a run at once. The run then finishes
    and saves its training step, for which it may need one more batch from its workers. They end with it: when it tells
    them to, or when it is gone (torch's own watch). Nothing is changed outside of Linux, and where workers are not
    forked: those have threads from their imports, which would take the signal, and nobody could ask who sent it.
    """
    if not _THREADS.is_dir() or len(list(_THREADS.iterdir())) > 1:
        return
    # Blocked here and so in threads that start later: the signal waits for the one that asks who sent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_asked_by, args=(os.getppid(),), daemon=True).start()


def _end_when_asked_by(reader: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != reader:
        pass
    os._exit(0)
