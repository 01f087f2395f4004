"""What `results:` of a recipe may hold: figures that were measured, and what they were measured with.

Hand-written: rows of figures under names of one's own (`onnx: {top1: 96.1, bytes: 544972}`), with `command` and
`machine`. Filled in by a run: the fields of `act.run.report.measured`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from act.recipe.coerce import Problems, convert, shown

HASH = re.compile(r"[0-9a-f]{64}")
_TEXTS = ("name", "format", "sha256")

# By runtime and batch size.
_NESTED: dict[str, Any] = {"latency": dict[str, dict[str, dict[str, float]]], "speedup": dict[str, dict[str, float]]}


@dataclass
class Weights:
    """The original model."""

    weights: str  # sha256 of its tensors


@dataclass
class Images:
    """The images of one role."""

    fingerprint: str  # sha256 of names, sizes, labels and contents
    images: int | None = None  # None: a stream of unknown length


@dataclass
class Environment:
    """Versions, and the machine without its name."""

    vitcompress: str
    cpu: str = ""
    machine: str = ""  # fingerprint of what decides its speed
    packages: dict[str, str] = field(default_factory=dict)


_FIELDS: dict[str, Any] = {
    "status": Literal["met", "missed", "no_target"],
    "command": str,
    "machine": str,
    "trial": int,
    "searched": dict[str, Any],
    "settings": str,  # hash of the recipe without locations
    "model": Weights,
    "data": dict[str, Images],
    "environment": Environment,
}


def check_results(results: dict[str, Any], problems: Problems) -> None:
    """Report everything in `results` that is neither a known field nor a figure or row of figures."""
    for name, value in results.items():
        key = f"results.{name}"
        if name in _FIELDS:
            found = convert(_FIELDS[name], value, key, problems)
            for where, text in _hashes(name, key, found):
                if not HASH.fullmatch(text):
                    problems.add(where, f"{shown(text)} is no sha256; allowed: 64 hexadecimal digits")
        elif name in ("stages", "artifacts"):
            _rows(value, key, "name" if name == "stages" else "format", problems)
        elif isinstance(value, dict) and name not in _NESTED:
            _row(value, key, problems)
        elif not _number(value):
            problems.add(key, f"{shown(value)}: neither a figure nor a row of figures; free text goes under `command`")


def _hashes(name: str, key: str, value: Any) -> list[tuple[str, str]]:
    if name == "settings" and isinstance(value, str):
        return [(key, value)]
    if isinstance(value, Weights):
        return [(f"{key}.weights", value.weights)]
    if name == "data" and isinstance(value, dict):
        images = {role: item for role, item in value.items() if isinstance(item, Images)}
        return [(f"{key}.{role}.fingerprint", item.fingerprint) for role, item in images.items()]
    return []


def _rows(value: Any, key: str, label: str, problems: Problems) -> None:
    if not isinstance(value, list):
        problems.add(key, f"expected a list of rows of figures, got {shown(value)}")
        return
    for index, row in enumerate(value):
        if not isinstance(row, dict) or not isinstance(row.get(label), str) or not row[label]:
            problems.add(f"{key}[{index}]", f"{shown(row)}: expected a row of figures with its {label}")
        else:
            _row(row, f"{key}[{index}]", problems)


def _row(row: dict[str, Any], key: str, problems: Problems) -> None:
    for name, value in row.items():
        if name in _TEXTS:
            convert(str, value, f"{key}.{name}", problems)
        elif name in _NESTED and isinstance(value, dict):
            convert(_NESTED[name], value, f"{key}.{name}", problems)
        elif not _number(value):
            problems.add(f"{key}.{name}", f"{shown(value)} is no figure; allowed: a number")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
