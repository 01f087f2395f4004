"""What became of every layer: zeros, bits, work and error as heat maps of blocks by kinds, and as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from act.folding import number_of
from act.run.page.parts import Number, details, table
from act.run.page.plots import WIDTH, figure, text

Entry = Mapping[str, Any]
GUTTER, ROW, HEAD = 66, 21, 18
OUTSIDE = "outside"  # the row of layers that belong to no block
STRONGEST = 0.6  # opacity of the deepest colour, on which text is still legible


def layers(report: Mapping[str, Any]) -> str:
    """Pictures and table of the report's `layers`, '' where it has none."""
    found = report.get("layers")
    if not found:
        return ""
    entries: list[Entry] = found["entries"]
    maps = [
        _map("Zero weights", "percent, by a mask", entries, _zeros, "var(--s0)", lambda value: value / 100),
        _map("Bits", "of input and weight", entries, _bits, "var(--s2)", lambda value: (5 - math.log2(value)) / 4),
        _map("Work removed", "percent of multiply-accumulates", entries, _removed, "var(--s3)", lambda v: v / 100),
        _map("Output error", "percent of the output's norm", entries, _error, "var(--s1)", None),
    ]
    images = found["images"]
    how = (
        f"Output error: norm of the difference from the original's output over that output's norm, both models run "
        f"whole on {images} calibration images, so that the error of earlier layers is in it."
        if images
        else "Output error: not measured, since the run had no images to calibrate with."
    )
    return (
        f'<div class="figures">{"".join(maps)}</div><p><small>Rows are kinds of matrix products, columns blocks in '
        f"the order of a forward; x: removed. {how}</small></p>"
        f"{details(f'All {len(entries)} products', _table(entries))}"
    )


def _zeros(entry: Entry) -> float | None:
    return entry["zeros"] if entry["macs"] and entry["weighted"] else None


def _bits(entry: Entry) -> float | None:
    """The geometric mean of the two operands' bits; 32 is no integer at all."""
    first, second = entry["bits"]
    return math.sqrt(first * second) if entry["macs"] else None


def _removed(entry: Entry) -> float | None:
    return 100 * (1 - entry["macs"] / entry["macs_before"]) if entry["macs_before"] else None


def _error(entry: Entry) -> float | None:
    error = entry.get("output_error")
    return None if error is None else 100 * error


Value = Callable[[Entry], float | None]


def _map(heading: str, label: str, entries: Sequence[Entry], value: Value, colour: str, depth: Any) -> str:
    """A heat map; '' where it would say nothing (no zeros, nothing quantised, ...)."""
    known = [found for entry in entries if (found := value(entry)) is not None]
    plain = 32.0 if value is _bits else 0.0
    if all(found == plain for found in known):
        return ""
    smallest, largest = min(known), max(known)
    depth = depth or (lambda found: found / largest)
    label += f", {smallest:.0f} to {largest:.0f}"
    columns = list(dict.fromkeys(map(_column, entries)))
    known_rows = [_row(entry) for entry in entries if value(entry) is not None]
    rows = sorted(dict.fromkeys(known_rows), key=lambda name: name == OUTSIDE)
    width = min(34.0, (WIDTH - GUTTER) / len(columns))
    drawn = []
    blocks = {entry["block"] for entry in entries}
    numbers = [_number(column) if column in blocks else "" for column in columns]
    # Where there is no room for all, every second or third block is named.
    every = math.ceil((6.2 * max(map(len, numbers)) + 4) / width)
    for index, shown in enumerate(numbers):
        if index % every == 0:
            drawn.append(text(GUTTER + (index + 0.5) * width, HEAD - 6, shown, "middle"))
    for level, row in enumerate(rows):
        top = HEAD + level * ROW
        drawn.append(text(GUTTER - 8, top + 14, row, "end"))
        for index, column in enumerate(columns):
            own = [entry for entry in entries if _column(entry) == column and _row(entry) == row]
            if own:
                drawn.append(_cell(own, value, GUTTER + index * width, top, width, colour, depth))
    return figure(heading, label, "".join(drawn), size=(WIDTH, HEAD + ROW * len(rows)))


def _room(words: str) -> float:
    """Width that words in a cell need; no less than two digits do, so that a map has all of its figures or none."""
    return max(18.0, 6.2 * len(words.replace("·", "")) + 3 * words.count("·") + 4)


def _column(entry: Entry) -> str:
    return str(entry["block"] or entry["name"])


def _row(entry: Entry) -> str:
    return str(entry["kind"]) if entry["block"] else OUTSIDE


def _cell(own: Sequence[Entry], value: Value, x: float, top: float, width: float, colour: str, depth: Any) -> str:
    """The mean of the entries of one kind in one block, by their work."""
    pairs = [(found, max(entry["macs"], 1)) for entry in own if (found := value(entry)) is not None]
    names = ", ".join(entry["name"] for entry in own)
    box = f'x="{x + 0.75:.2f}" y="{top}" width="{width - 1.5:.2f}" height="{ROW - 1.5}" rx="2"'
    if not pairs:
        gone = not any(entry["macs"] for entry in own)
        said = f"<title>{escape(f'{names}: ' + ('removed' if gone else 'not comparable'))}</title>"
        cross = text(x + width / 2, top + 14, "x", "middle") if gone else ""
        return f'<rect {box} fill="none" stroke="var(--line)">{said}</rect>{cross}'
    mean = sum(found * weight for found, weight in pairs) / sum(weight for _, weight in pairs)
    shade = STRONGEST * min(max(depth(mean), 0.0), 1.0)
    words = "·".join(map(str, dict.fromkeys(own[0]["bits"]))) if value is _bits else f"{mean:.0f}"
    shown = text(x + width / 2, top + 14, words, "middle", "cell") if width >= _room(words) else ""
    said = f"{names}: {words if value is _bits else f'{mean:.2f}'}"
    return (
        f'<rect {box} fill="{colour}" fill-opacity="{shade:.3f}" stroke="var(--line)">'
        f"<title>{escape(said)}</title></rect>{shown}"
    )


def _number(block: str) -> str:
    """The numbers in a block's name: layers.1.blocks.0 is 1.0."""
    return ".".join(filter(None, map(number_of, block.split("."))))


def _table(entries: Sequence[Entry]) -> str:
    rows = []
    for entry in entries:
        removed, zeros, error = _removed(entry), _zeros(entry), _error(entry)
        bits = " x ".join(map(str, entry["bits"])) if entry["macs"] else "removed"
        cells = (
            bits,
            "" if zeros is None else f"{zeros:.1f} %",
            "" if removed is None else f"{removed:.1f} %",
            f"{entry['macs'] / 1e6:,.2f}",
            "" if error is None else f"{error:.2f} %",
        )
        rows.append((entry["name"], entry["kind"], *map(Number, cells)))
    head = map(Number, ("bits", "zero weights", "work removed", "M MACs", "output error"))
    return table(("layer", "kind", *head), rows)
