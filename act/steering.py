"""Characters that make a terminal show something else than what a text says."""

from __future__ import annotations

import re

# Control characters and those that reorder text. A carriage return ends lines of files, so it is none of these.
STEERING = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_PRINTED = re.compile(f"\r|{STEERING.pattern}")


def harmless(text: str) -> str:
    """`text`, which may quote a server or a file, as it may be printed."""
    return _PRINTED.sub("\N{REPLACEMENT CHARACTER}", text)
