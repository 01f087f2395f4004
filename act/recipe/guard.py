"""Nothing in a recipe may run code or read the environment: recipes are shared between strangers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from act.recipe.coerce import LARGEST, Problems, shown
from act.recipe.text import MAX_DEPTH
from act.steering import STEERING

_CODE_KEY = re.compile(r"_\w+_")
_MAX_TEXT = 20_000


DROPPED = object()


def plain(value: Any, key: str, problems: Problems, depth: int = 0) -> Any:
    """A copy made of dict, list, text, numbers, booleans and None only; whatever is unsafe is reported and left out.

    Refused (DROPPED when it is the whole value): keys such as `_target_`, `${...}` interpolations and resolvers,
    `???`, NaN and infinity, objects.
    """
    if depth > MAX_DEPTH:
        problems.add(key, f"nested more than {MAX_DEPTH} levels deep")
        return DROPPED
    if isinstance(value, Mapping):
        result = {}
        for name, inner in value.items():
            path = f"{key}.{name}" if key else str(name)
            if usable_key(name, path, problems):
                result[name] = plain(inner, path, problems, depth + 1)
        return {name: inner for name, inner in result.items() if inner is not DROPPED}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        copies = [plain(inner, f"{key}[{index}]", problems, depth + 1) for index, inner in enumerate(items)]
        return [inner for inner in copies if inner is not DROPPED]
    if isinstance(value, PurePath):
        value = str(value)
    if value is None or isinstance(value, bool | int | float | str):
        problem = _problem(value)
        if problem is None:
            return value if not isinstance(value, str) else str(value)
        problems.add(key, problem)
        return DROPPED
    problems.add(key, f"{type(value).__name__} objects are not allowed in a recipe; only plain values are")
    return DROPPED


def usable_key(name: Any, path: str, problems: Problems) -> bool:
    """Whether `name` may be a key; what is wrong with it is reported under `path`."""
    if not isinstance(name, str):
        problems.add(path, f"{shown(name)} used as a key; keys are words")
        return False
    if _CODE_KEY.fullmatch(name):
        problems.add(path, "would run code; a recipe names things only and never executes any; remove it")
        return False
    if STEERING.search(name):
        problems.add(path.encode("unicode_escape").decode(), "holds characters that steer a terminal; leave them out")
        return False
    if "${" in name:
        problems.add(path, "interpolation is not allowed in a recipe; write the name out")
        return False
    return True


def _problem(value: bool | int | float | str | None) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a usable number"
    if isinstance(value, int | float) and abs(value) >= LARGEST:
        return "a number too large to use"
    if not isinstance(value, str):
        return None
    if "${" in value:
        return (
            f"{shown(value)}: interpolations and resolvers (${{...}}) are not allowed in a recipe; write the value out"
        )
    if found := STEERING.search(value):
        return f"holds the character U+{ord(found[0]):04X}, which steers a terminal; leave it out"
    if value == "???":
        return "'???' stands for a missing value; write one, or null"
    return f"text of {len(value)} characters; allowed: up to {_MAX_TEXT}" if len(value) > _MAX_TEXT else None
