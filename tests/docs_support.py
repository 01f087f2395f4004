"""What README and docs/ show: their fenced blocks and the commands in them, and the real parsers for these."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:vitcompress|python|accelerate) [^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; the tests' table names it by the start of its `first` line."""

    page: str
    language: str
    text: str
    after: str  # the block before it on the page, whose output a text block may show

    @property
    def first(self) -> str:
        return self.text.splitlines()[0]

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block, without comments; parts joined by && are commands of their own."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [part.strip() for line in lines for part in line.split("  #")[0].split(" && ") if part.strip()]


def pages() -> dict[str, str]:
    """Text of each page by its path."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


def blocks() -> list[Block]:
    """Every fenced block."""
    found = []
    for page, text in pages().items():
        before = ""
        for match in _FENCE.finditer(text):
            found.append(Block(page, match[1], match[2], before))
            before = match[2]
    return found


def named(page: str, start: str) -> list[Block]:
    """The blocks of a page whose first line starts so."""
    return [item for item in blocks() if item.page == page and item.first.startswith(start)]


def inline_commands() -> list[tuple[str, str]]:
    """(page, command) of every command inside a sentence or table."""
    return [
        (page, " ".join(match[1].split()))
        for page, text in pages().items()
        for match in _INLINE.finditer(_FENCE.sub("", text))
    ]


def parse(command: str) -> None:
    """Parse a command's arguments by the parser of the program it names; fails where the parser refuses them."""
    words = shlex.split(command)
    try:
        if words[0] == "vitcompress":
            _parse_own(words[1:])
        elif words[0] == "accelerate":
            _parse_launch(words[1:])
        else:
            assert words[0] in ("python", "python3"), f"no parser for: {command}"
            _parse_python(words[1:])
    except SystemExit:
        pytest.fail(f"not accepted: {command}")


def _parse_own(words: list[str]) -> None:
    from act.cli.main import VERBS
    from act.cli.main import parse as parse_own

    if len(words) == 1:  # a verb by its name
        assert words[0] in VERBS or words[0].startswith("-"), words
        return
    parse_own(words)


def _parse_launch(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert words.pop(0) == "launch"
    if not words:  # the program by its name
        return
    args = launch_command_parser().parse_args(words)
    assert args.module and args.training_script == "act"
    _parse_own(args.training_script_args)


def _parse_python(words: list[str]) -> None:
    if words[:2] == ["-m", "pytest"]:
        assert (ROOT / words[2]).is_file()
    elif words[:2] != ["-m", "venv"]:
        path = ROOT / words[0]
        assert path.is_file(), f"no such script: {words[0]}"
        if "argparse" in path.read_text(encoding="utf-8"):
            _parse_script(path, words[1:])
        else:
            assert not words[1:]


class _Parsed(Exception):
    """The script has parsed its arguments."""


def _parse_script(path: Path, words: list[str]) -> None:
    """Run a script as far as its parser."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)

    def stop(name: str) -> Any:
        real = getattr(argparse.ArgumentParser, name)

        def parse_and_stop(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
            real(self, *args, **kwargs)
            raise _Parsed

        return parse_and_stop

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        patch.setitem(sys.modules, spec.name, script)  # dataclasses look their module up
        spec.loader.exec_module(script)
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, stop(name))
        patch.setattr(sys, "argv", [str(path), *words])
        with pytest.raises(_Parsed):
            script.main()


def shows(shown: str, printed: str) -> bool:
    """Whether `printed` is what a page shows of it: `...` stands for anything, as a line or inside one."""
    pattern = re.escape(shown.strip()).replace(r"\.\.\.", ".*?")
    return re.search(pattern, printed, re.DOTALL) is not None
