"""Several runs on one page, in the style of a report."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from act.run.compare import Run, differences, rows
from act.run.page.document import document
from act.run.page.parts import Number, called, details, duration, mapping, metrics, section, table
from act.run.page.scatter import pictures, relative_points
from act.run.page.summary import verdict

TEXT = ("run", "file")  # columns that hold words
HOW = (
    "<p><small>Accuracies in percent; change, smaller and speed-ups are against each run's own original; b8: in "
    "batches of 8.</small></p>"
)


def compare_page(runs: Sequence[Run], notes: Sequence[str]) -> str:
    """The page; every value is escaped."""
    columns, cells = rows(runs)
    shown = [index for index, name in enumerate(columns) if name != "stages"]  # they have a table of their own
    columns, cells = [columns[index] for index in shown], [[row[index] for index in shown] for row in cells]
    head = [name if name in TEXT else Number(called(name)) for name in columns]
    body = [[cell if name in TEXT else Number(cell) for name, cell in zip(columns, row, strict=True)] for row in cells]
    keys = ("key", *(run.name for run in runs))
    different = [[key, *values] for key, values in differences(runs)]
    known = [names[0] for run in runs if (names := metrics(run.report))]
    points = [point for run in runs for point in relative_points(run.report, run.name)]
    drawn = pictures(points, {}, known[0], relative=True) if known and len(set(known)) == 1 else ""
    environments = "".join(f"<h3>{escape(run.name)}</h3>{mapping(run.report.get('environment', {}))}" for run in runs)
    parts = [
        _header(runs, notes),
        section("Figures", table(head, body) + HOW),
        section("Accuracy and speed", f'<div class="figures">{drawn}</div>' if drawn else ""),
        section("Stages", _stages(runs)),
        section("What differs in the recipes", table(keys, different) if different else "<p>Nothing.</p>"),
        section("Environments", details("Versions and machines", environments)),
    ]
    return document(f"{', '.join(run.name for run in runs)}: vitcompress compare", parts)


def _header(runs: Sequence[Run], notes: Sequence[str]) -> str:
    lines = "".join(f"<li><b>{escape(run.name)}</b>: {escape(verdict(run.report))}</li>" for run in runs)
    remarks = "".join(f'<p class="missed">{escape(note[0].upper() + note[1:])}.</p>' for note in notes)
    return (
        f'<header><h1>vitcompress compare</h1><p class="verdict">{len(runs)} runs</p><ul>{lines}</ul>{remarks}</header>'
    )


def _stages(runs: Sequence[Run]) -> str:
    found = []
    for run in runs:
        names = metrics(run.report)
        for number, stage in enumerate(run.report["stages"]):
            score = stage.get(names[0]) if names else None
            cells = ("" if score is None else f"{score:.2f}", duration(stage["seconds"]), f"{stage.get('steps', 0):,}")
            found.append((run.name if number == 0 else "", stage["name"], *map(Number, cells)))
    return table(("run", "stage", *map(Number, ("accuracy after", "time", "steps"))), found)
