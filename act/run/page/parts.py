"""Pieces of a page: tables, sections, and how figures are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

NAMES = {"top1": "top-1"}  # what a figure of the report is called on a page


class Number(str):
    """Text of a table cell that is set as a figure."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table of escaped text; cells that are `Number` are set to the right. No `head`, no head line."""

    def cell(tag: str, value: str) -> str:
        return f"<{tag}{' class=number' if isinstance(value, Number) else ''}>{escape(value)}</{tag}>"

    body = "".join(f"<tr>{''.join(cell('td', value) for value in row)}</tr>" for row in rows)
    names = f"<thead><tr>{''.join(cell('th', name) for name in head)}</tr></thead>" if head else ""
    # A table that is wider than a phone scrolls by itself; tabindex lets the keyboard reach it.
    return f'<div class="scroll" tabindex="0"><table>{names}<tbody>{body}</tbody></table></div>'


def section(title: str, body: str) -> str:
    """A part of the page under its heading, '' where `body` is empty."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def details(summary: str, body: str) -> str:
    """`body` that unfolds."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def mapping(values: Mapping[str, Any]) -> str:
    """Keys and values as a table; lists and mappings in one line each."""

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {item}" for key, item in value.items())
        return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)

    return table((), [(str(key), text(value)) for key, value in values.items()])


def metrics(report: Mapping[str, Any]) -> list[str]:
    """The names of the figures of quality that the report has: the one that goals go by, top1, agreement."""
    entries = [report["baseline"], *report["stages"], *report["artifacts"]]
    names = dict.fromkeys(name for name in (report.get("metric"), "top1", "agreement") if name)
    return [name for name in names if any(name in entry for entry in entries)]


def called(name: str) -> str:
    """A figure's name for people."""
    return NAMES.get(name, name)


def figure(value: Any) -> str:
    """A percentage or another metric; '' for None."""
    return "" if value is None else f"{value:.2f}"


def milliseconds(value: float | None) -> str:
    """A latency; '' for None."""
    return "" if value is None else f"{value:.2f} ms"


def megabytes(count: int) -> str:
    """Bytes in MB of 10^6, small ones in kB."""
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def duration(seconds: float) -> str:
    """Seconds in the largest two units that matter."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
