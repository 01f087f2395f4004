"""YAML text to plain values: size, depth and syntax are checked here, and nothing but plain values comes out.

Scalars follow YAML 1.2 (`2e-4` is a number, `2:4` and `on` are text), unlike PyYAML's own rules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from act.errors import InputError
from act.steering import STEERING

MAX_BYTES = 128 * 1024
TOO_LARGE = f"larger than {MAX_BYTES // 1024} KiB; a recipe is a short YAML file"
MAX_DEPTH = 16
EXAMPLE = "a recipe names at least a model and data (see: vitcompress recipes show)"
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    word: value for value in (True, False) for word in (str(value), str(value).lower(), str(value).upper())
}


@dataclass
class Document:
    """A parsed recipe: plain values, and the line (1-based) at which each dotted key stands."""

    values: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # each `LINE: what`, LINE may be followed by a key


class _Loader(yaml.SafeLoader):
    """Composes nodes only; refuses what has no place in a recipe while it does so."""

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refused(event, "anchors and aliases (&, *) are not allowed in a recipe; write the value out, quoted")
        if getattr(event, "tag", None):
            raise _refused(event, f"the tag {event.tag!r} is not allowed in a recipe; only plain values are")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _refused(event, f"nested more than {MAX_DEPTH} levels deep")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def read_text(path: Path) -> str:
    """The text of a recipe file.

    Raises:
        InputError: unreadable, larger than MAX_BYTES, or not UTF-8 text.
    """
    return decode(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """The content of a recipe file; InputError if it cannot be read or is larger than MAX_BYTES."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{path}: {TOO_LARGE}")
    return data


def decode(data: bytes, source: str) -> str:
    """Bytes of a recipe as text; InputError if they are not UTF-8, or hold characters that steer a terminal."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 text; a recipe is a YAML file") from error
    if "\0" in text:
        raise InputError(f"{source}: a binary file; a recipe is a YAML file")
    if found := STEERING.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise InputError(f"{source}:{line}: holds the character U+{ord(found[0]):04X}, which steers a terminal")
    return text


def parse(text: str, source: str, example: str = EXAMPLE) -> Document:
    """Plain values of a YAML document whose root is a mapping; `example` says what one looks like.

    Raises:
        InputError: the text is no such document (one problem: a YAML parser cannot go on after the first).
    """
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise InputError(f"{where}: not valid YAML: {_explain(error, text, mark)}") from None
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{source}: not valid YAML: {first}; a recipe is a UTF-8 text file") from None
    if root is None or (isinstance(root, ScalarNode) and root.style is None and _WORDS.get(root.value, "") is None):
        raise InputError(f"{source}: empty; {example}")
    if not isinstance(root, MappingNode):
        raise InputError(f"{source}: expected `section: ...` lines, found {_kind(root)}; {example}")
    document = Document({})
    document.values = _mapping(root, "", document)
    return document


def _mapping(node: MappingNode, prefix: str, document: Document) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, ScalarNode):
            document.problems.append(f"{line}: {prefix or 'a key'}: {_kind(key_node)} used as a key; keys are words")
            continue
        key = str(key_node.value)
        path = f"{prefix}.{key}" if prefix else key
        if key in values:
            first = document.lines[path]
            document.problems.append(f"{line}: {path}: given twice (first on line {first}); keep one of them")
            continue
        document.lines[path] = line
        values[key] = _plain(value_node, path, document)
    return values


def _plain(node: Node, path: str, document: Document) -> Any:
    if isinstance(node, MappingNode):
        return _mapping(node, path, document)
    if isinstance(node, SequenceNode):
        return [_plain(item, path, document) for item in node.value]
    assert isinstance(node, ScalarNode)
    try:
        return _scalar(node)
    except ValueError:  # Python refuses to read integers of thousands of digits
        document.problems.append(f"{node.start_mark.line + 1}: {path}: a number too long to read")
        return None


def _scalar(node: ScalarNode) -> Any:
    text = str(node.value)
    if node.style is not None:  # quoted, or a block of text
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text, 10) if text.lstrip("+-").isdecimal() else int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(re.sub(r"\.(?=[inIN])", "", text))
    return text


def _kind(node: Node) -> str:
    if isinstance(node, MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, SequenceNode) else "a single value"


def _refused(event: Any, message: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=event.start_mark)


def _explain(error: yaml.MarkedYAMLError, text: str, mark: Any) -> str:
    line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in str(error.problem):
        return "a tab where spaces are due; indent with spaces"
    if "single document" in str(error.context):
        return "more than one document (---) in the file; a recipe is one"
    return " ".join(str(error.problem or error.context).split())


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either reading of YAML would not read back as text; writes no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{_FLOAT.pattern})$"), list("-+0123456789."))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(f"^(?:{_INT.pattern})$"), list("-+0123456789"))


def dump(values: dict[str, Any]) -> str:
    """YAML text that `parse` reads back as the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
