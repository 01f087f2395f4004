"""How long a thread of torch waits awake for the others of its process.

On Linux torch computes with GNU's OpenMP, whose threads turn for milliseconds at the end of every parallel piece before
they sleep. On cores that other processes use, too, such waiting keeps the work from being done that is waited for: a
training step beside another training took 5.5 times as long as alone, and takes 1.4 times as long when threads sleep
early, which costs nothing that can be told from noise where a process has its cores for itself
(`benchmarks/shared_cores.py`).
"""

from __future__ import annotations

import os
import sys

COUNT = "GOMP_SPINCOUNT"
TURNS = 1000
VARIABLES = (COUNT, "OMP_WAIT_POLICY")


def sleep_early() -> None:
    """Let waiting threads sleep after `TURNS`, unless the environment says otherwise or torch was loaded before.

    OpenMP reads the variable once, when torch is loaded.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in VARIABLES):
        os.environ[COUNT] = str(TURNS)
