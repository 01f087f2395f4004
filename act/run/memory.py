"""Peak memory of one part of a run."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

from act.run.large_pages import give_back

_STATUS = Path("/proc/self/status")


def reset_peak() -> None:
    """Start measuring anew, where the kernel allows it (Linux); elsewhere the peak is that of the process so far."""
    give_back()
    # Writing 5 resets the resident-set high-water mark; a sandbox may forbid it, and then nothing is lost but detail.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_mb() -> float:
    """Highest resident memory of this process since `reset_peak`, in MiB; data-loading workers are not included."""
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
