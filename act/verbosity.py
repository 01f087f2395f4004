"""How much is said while something runs.

Progress and remarks are of level INFO of the logger `vitcompress`: `--quiet` of the command, and
`logging.getLogger("vitcompress").setLevel("WARNING")` in Python, leave them out.
"""

from __future__ import annotations

import logging

LOGGER = logging.getLogger("vitcompress")
if LOGGER.level == logging.NOTSET:
    LOGGER.setLevel(logging.INFO)


def set_quiet(quiet: bool) -> None:
    """Leave progress and remarks out from now on, or not."""
    LOGGER.setLevel(logging.WARNING if quiet else logging.INFO)


def is_quiet() -> bool:
    """Whether progress and remarks are left out."""
    return not LOGGER.isEnabledFor(logging.INFO)
