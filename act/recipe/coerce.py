"""Plain values into typed dataclasses, strictly: every problem is collected, none is guessed away."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from act.errors import InputError

LARGEST = 2**63  # no whole number of a recipe is as large, and longer ones cannot even be printed
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}


class Problems:
    """Everything wrong with a recipe, each line `file:line: key: what; what is allowed`."""

    def __init__(self, source: str, lines: Mapping[str, int] | None = None, overridden: Iterable[str] = ()) -> None:
        self.source = source
        self.lines = lines or {}
        self.overridden = set(overridden)
        self.found: list[str] = []

    def add(self, key: str, what: str) -> None:
        """Report `what` about a dotted key; where it was given (line, or command line) is added."""
        parts = key.split(".")
        where = self.source
        for name in (".".join(parts[:length]) for length in range(len(parts), 0, -1)):
            if name in self.lines and name not in self.overridden:
                where = f"{self.source}:{self.lines[name]}"
                break
            if any(given == name or given.startswith(f"{name}.") for given in self.overridden):
                where = "command line"
                break
        line = " ".join(f"{where}: {key}: {what}".split())
        if line not in self.found:
            self.found.append(line)

    def raise_if_any(self) -> None:
        """Raise InputError with all problems found so far, in the order of their lines."""
        if self.found:
            raise InputError([" ".join(line.split()) for line in sorted(self.found, key=self._line)])

    def _line(self, problem: str) -> float:
        number = problem.removeprefix(f"{self.source}:").partition(":")[0]
        return int(number) if number.isdecimal() else math.inf


def near(name: str, options: Iterable[str]) -> str:
    """` (did you mean X?)` for the option that `name` most resembles, else nothing."""
    by_lower = {option.lower(): option for option in options}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean {by_lower[found[0]]}?)" if found else ""


def shown(value: Any) -> str:
    """`value` as a short piece of an error message."""
    return short("null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value), 60)


def short(text: str, most: int = 200) -> str:
    """`text`, cut where it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def build(cls: type, values: Any, key: str, problems: Problems) -> Any | None:
    """An instance of the dataclass `cls` from a mapping. Fields that are wrong are reported and keep their defaults.

    None when that cannot be done: `values` is no mapping, or a field without a default is missing or wrong.
    """
    fields = [field for field in dataclasses.fields(cls) if field.init]
    allowed = ", ".join(field.name for field in fields) or "nothing"
    values = {} if values is None else values
    if not isinstance(values, Mapping):
        problems.add(key, f"expected a mapping, got {shown(values)}; allowed keys: {allowed}")
        return None
    hints = get_type_hints(cls)
    for name in values:
        if name not in {field.name for field in fields}:
            hint = near(name, hints)
            problems.add(f"{key}.{name}", f"unknown key{hint}; allowed: {allowed}")
    typed: dict[str, Any] = {}
    complete = True
    for field in fields:
        before = len(problems.found)
        if field.name in values:
            value = convert(hints[field.name], values[field.name], f"{key}.{field.name}", problems)
            if len(problems.found) == before or dataclasses.is_dataclass(value):
                typed[field.name] = value
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            problems.add(f"{key}.{field.name}", f"missing; it is {describe(hints[field.name])}")
        complete = complete and not (required and field.name not in typed)
    return cls(**typed) if complete else None


def convert(kind: Any, value: Any, key: str, problems: Problems) -> Any:
    """`value` as type `kind`; anything else is reported under `key` and comes back as it was."""
    result = _convert(kind, value, key, problems)
    if isinstance(result, _Wrong):
        problems.add(key, result.what)
        return value
    return result


@dataclasses.dataclass(frozen=True)
class _Wrong:
    what: str


def _convert(kind: Any, value: Any, key: str, problems: Problems) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any or kind is object:
        return value
    if origin in (Union, types.UnionType):
        return _union(kind, args, value, key, problems)
    if origin is Literal:
        if value in args and type(value) in {type(option) for option in args}:
            return value
        hint = near(value, map(_word, args)) if isinstance(value, str) else ""
        return _Wrong(f"{shown(value)} is unknown{hint}; allowed: {', '.join(map(_word, args))}")
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return build(kind, value, key, problems)
    if origin in (list, tuple):
        return _sequence(kind, value, key, problems)
    if origin is dict or kind is dict:
        if not isinstance(value, Mapping):
            return _Wrong(f"expected {describe(kind)}, got {shown(value)}")
        item = args[1] if args else Any
        return {name: convert(item, inner, f"{key}.{name}", problems) for name, inner in value.items()}
    return _scalar(kind, value)


def _union(kind: Any, args: tuple[Any, ...], value: Any, key: str, problems: Problems) -> Any:
    if value is None and type(None) in args:
        return None
    members = [member for member in args if member is not type(None)]
    if len(members) == 1:
        result = _convert(members[0], value, key, problems)
        if isinstance(result, _Wrong) and isinstance(value, str) and value.lower() == "none":
            return _Wrong(f"{value!r} is read as text; write null")
        return result
    # Inside a mapping or list the problem itself is worth more than a list of what else could stand there.
    structured = [member for member in members if _holds(member, value)]
    if len(structured) == 1:
        return _convert(structured[0], value, key, problems)
    # The member of the value's own type first, so that 1 stays an int where int and float are both allowed.
    for member in sorted(members, key=lambda member: member is not type(value)):
        trial = Problems("")
        result = _convert(member, value, key, trial)
        if not isinstance(result, _Wrong) and not trial.found:
            return result
    return _Wrong(f"expected {describe(kind)}, got {shown(value)}")


def _holds(kind: Any, value: Any) -> bool:
    if isinstance(value, Mapping):
        return dataclasses.is_dataclass(kind) or kind is dict or get_origin(kind) is dict
    return isinstance(value, list | tuple) and get_origin(kind) in (list, tuple)


def _sequence(kind: Any, value: Any, key: str, problems: Problems) -> Any:
    args = get_args(kind)
    if not isinstance(value, list | tuple):
        example = "" if isinstance(value, Mapping) or value is None else f"; write [{shown(value).strip(chr(39))}]"
        return _Wrong(f"expected {describe(kind)}, got {shown(value)}{example}")
    converted = [convert(args[0], item, f"{key}[{index}]", problems) for index, item in enumerate(value)]
    return tuple(converted) if get_origin(kind) is tuple else converted


def _scalar(kind: Any, value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return _Wrong(f"{value} is not a usable number; expected {describe(kind)}")
    if type(value) is int and abs(value) >= LARGEST:
        return _Wrong("a number too large to use")
    if type(value) is kind:
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number:
        return float(value)
    if kind is int and number and float(value).is_integer() and abs(value) < LARGEST:
        return int(value)
    hint = ""
    if kind is str and (number or isinstance(value, bool)):
        hint = "; put it in quotes"
    elif kind in (int, float) and isinstance(value, str) and _is_number(value):
        hint = "; remove the quotes"
    return _Wrong(f"expected {describe(kind)}, got {shown(value)}{hint}")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _word(option: Any) -> str:
    return str(option).lower() if isinstance(option, bool) else str(option)


def describe(kind: Any) -> str:
    """A type in words."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(member) for member in args)
    if origin is Literal:
        return "one of " + ", ".join(map(_word, args))
    if origin in (list, tuple):
        return f"a list of {_PLURALS.get(args[0], 'values')}"
    if origin is dict or kind is dict or dataclasses.is_dataclass(kind):
        return "a mapping"
    return _WORDS.get(kind, "a value")


_PLURALS: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "texts"}
