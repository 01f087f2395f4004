"""What a text tells of the machine it was written on: user, host, home folder, absolute paths."""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Names that tell nothing of anybody.
_COMMON = {"root", "user", "admin", "ubuntu", "runner", "localhost", "default", "home"}
_WINDOWS = re.compile(r"(?<![A-Za-z])[A-Za-z]:[\\/](?=\w)|\\\\\w+\\\w")
_HOME = re.compile(r"(?<![\w/])~[\w.-]*/")
_ABSOLUTE = re.compile(r"(?<![\w:/.~\])}*])/(?:[\w.@+-]+/)*[\w.@+-]*[A-Za-z_][\w.@+-]*")
_FILE_URL = re.compile(r"file:/", re.IGNORECASE)


@dataclass(frozen=True)
class Leak:
    """Something in line `line` (from 1): the words, and what they are."""

    line: int
    words: str
    what: str


def find_leaks(text: str, allowed: Iterable[str] = ()) -> list[Leak]:
    """Every leak in `text`, by line; `allowed` words are let pass."""
    passed = set(allowed)
    names = _names()
    return [
        leak
        for number, line in enumerate(text.splitlines(), 1)
        for leak in _in_line(number, line, names)
        if leak.words not in passed
    ]


def _names() -> dict[str, str]:
    """Names that must not get out, and what they are."""
    host = socket.gethostname()
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no such user on this system
        user = ""
    names = {Path.home().name: "the name of your home folder", user: "your user name"}
    names |= {host: "the name of this machine", host.partition(".")[0]: "the name of this machine"}
    return {name: what for name, what in names.items() if len(name) > 2 and name.lower() not in _COMMON}


def _in_line(number: int, line: str, names: dict[str, str]) -> Iterator[Leak]:
    for name, what in names.items():
        if re.search(rf"(?<![\w]){re.escape(name)}(?![\w])", line, re.IGNORECASE):
            yield Leak(number, name, what)
    for pattern in (_WINDOWS, _HOME, _ABSOLUTE, _FILE_URL):
        for match in pattern.finditer(line):
            words = line[match.start() :].split()[0].rstrip("\"',;:)]}")
            yield Leak(number, words, "a path of this machine")
