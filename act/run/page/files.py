"""The exported files, each in its own runtime, and the attempts that led to them."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from act.run.page.parts import Number, figure, megabytes, milliseconds, table


def attempts(report: Mapping[str, Any]) -> str:
    """What the run tried to meet its goals; nothing where the first attempt was the only one."""
    rows = [
        (
            f"{attempt['number']}{' (kept)' if attempt['number'] == report['kept'] else ''}",
            str(attempt["reason"]),
            str(attempt["status"]),
            "; ".join(f"{goal['text']}: {'met' if goal['met'] else 'missed'}" for goal in attempt["goals"]),
        )
        for attempt in report.get("attempts", [])
    ]
    return table(("attempt", "what was changed", "outcome", "goals"), rows) if rows else ""


def exported(report: Mapping[str, Any]) -> str:
    """Every format in its own runtime, '' when the main file is the only one."""
    if len(report["artifacts"]) < 2:
        return ""
    rows = []
    for item in report["artifacts"]:
        for backend, batches in item.get("latency", {"": {"": {}}}).items():
            for batch, timing in batches.items():
                factor = item.get("speedup", {}).get(backend, {}).get(batch)
                scores = (figure(item.get(name)) for name in ("top1", "agreement", "agreement_torch"))
                times = (milliseconds(timing.get("median_ms")), "" if factor is None else f"{factor:.2f}x")
                cells = map(Number, (megabytes(item["bytes"]), *scores))
                rows.append((item["format"], *cells, backend, *map(Number, (batch, *times))))
    figures = map(Number, ("size", "top-1", "agreement", "agreement with torch"))
    head = ("format", *figures, "runtime", *map(Number, ("batch", "median", "speed-up")))
    return table(head, rows) + _forms(report)


def _forms(report: Mapping[str, Any]) -> str:
    """What was rewritten in each file for one runtime, and why it has the form that it has."""
    lines = []
    for item in report["artifacts"]:
        if "rewritten" not in item:
            continue
        times = "; ".join(f"{form} {milliseconds(median)}" for form, median in item.get("form_ms", {}).items())
        done = ", ".join(f"{count} {what}" for what, count in item["rewritten"].items() if count)
        measured = f" (measured: {times})" if times else ""
        left = f"; no tokens appended: {item['not_padded']}" if "not_padded" in item else ""
        text = f"{item['format']}: attention in {item['attention']}{measured}; {done}{left}"
        lines.append(f"<li>{escape(text)}</li>")
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def commands(report: Mapping[str, Any]) -> str:
    """For each format whose own runtime was not at hand: what was done instead, and the commands to run it."""
    parts = []
    for item in report["artifacts"]:
        if "commands" in item:
            lines = [f"# {item['format']} {version}\n{command}" for version, command in item["commands"].items()]
            remarks = "".join(f"<li>{escape(str(text))}</li>" for text in item.get("remarks", []))
            parts.append(
                f"<p>{escape(item['path'])}: {escape(str(item.get('executed', '')))}.</p>"
                f"{f'<ul>{remarks}</ul>' if remarks else ''}<pre>{escape(chr(10).join(lines))}</pre>"
            )
    return "".join(parts)
