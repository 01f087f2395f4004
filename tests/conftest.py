"""Several test processes share the cores: each of them computes with one thread."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported, so before any test module is
