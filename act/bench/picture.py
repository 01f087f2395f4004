"""Latency against accuracy as one SVG that asks for nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from act.bench.sources import ARTIFACT, BASELINE
from act.bench.timing import Row
from act.errors import InputError

WIDTH, PANEL, LEFT, RIGHT, TOP, BOTTOM = 760, 340, 64, 190, 34, 44
FAR = 15.0  # points below the best: drawn on the axis, with its value, so that the others stay apart
COLOURS = ("#1a5fb4", "#c64600", "#26a269", "#813d9c", "#a51d2d", "#986a44")
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1c2127}.soft{fill:#5f6b7a}"
    ".axis,.lead{stroke:#9aa5b1;fill:none}.lead{stroke-width:.7}"
    ".page{fill:#fff}@media(prefers-color-scheme:dark){text{fill:#e6e9ed}.soft{fill:#9aa5b1}.page{fill:#12161a}}"
)


def metric_of(rows: Sequence[Row]) -> str:
    """The accuracy to draw: top1 where any row has it, else agreement; InputError when no row has either."""
    for name in ("top1", "agreement"):
        if any(name in row.variant.figures for row in rows):
            return name
    raise InputError("--picture: no accuracy is known; name a finished run folder, or give --recipe to score the files")


def picture(rows: Sequence[Row], title: str) -> str:
    """One panel per batch size: milliseconds per image to the right, accuracy in percent upwards.

    Colours are runtimes. Originals are rings, compressed files discs, files of other tools squares. Rows without an
    accuracy are named below the title, one far below the best lies on the axis. InputError when no row has one.
    """
    metric = metric_of(rows)
    drawn = [row for row in rows if metric in row.variant.figures]
    missing = sorted({row.variant.name for row in rows} - {row.variant.name for row in drawn})
    batches = list(dict.fromkeys(row.batch for row in drawn))
    runtimes = list(dict.fromkeys(row.variant.runtime for row in drawn))
    height = TOP + 22 * bool(missing) + PANEL * len(batches)
    top = height - PANEL * len(batches)
    parts = [f'<text x="{LEFT}" y="20" font-weight="bold">{escape(title)}</text>']
    if missing:
        parts.append(f'<text class="soft" x="{LEFT}" y="40">without accuracy: {escape(", ".join(missing))}</text>')
    for index, batch in enumerate(batches):
        panel = [row for row in drawn if row.batch == batch]
        parts.append(f'<g transform="translate(0 {top + index * PANEL})">{_panel(panel, metric, runtimes)}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="latency and accuracy"><style>{STYLE}</style><rect class="page" width="{WIDTH}" '
        f'height="{height}"/>{"".join(parts)}</svg>\n'
    )


def _panel(rows: Sequence[Row], metric: str, runtimes: Sequence[str]) -> str:
    times = [row.median_ms / row.batch for row in rows]
    scores = [row.variant.figures[metric] for row in rows]
    right = _round_up(max(times))
    low, high = _span([value for value in scores if value > max(scores) - FAR])
    parts = [_axes(right, low, high, metric, rows[0].batch)]
    used: list[tuple[float, float]] = []
    for row, spent, value in sorted(zip(rows, times, scores, strict=True), key=lambda item: item[1]):
        x = LEFT + spent / right * (WIDTH - LEFT - RIGHT)
        y = 8 + (high - max(value, low)) / (high - low) * (PANEL - BOTTOM - 8)
        colour = COLOURS[runtimes.index(row.variant.runtime) % len(COLOURS)]
        text = f"{row.variant.source.name}, {row.variant.runtime}" + f" ({value:.2f})" * (value < low)
        where = f"{value:.2f} %, {spent:.2f} ms"
        level = y + 4
        # Labels of points that lie close together are put below one another.
        while any(abs(level - other) < 13 and abs(x - place) < 220 for place, other in used):
            level += 13
        used.append((x, level))
        lead = f'<path class="lead" d="M{x:.1f} {y:.1f}L{x + 7:.1f} {level - 4:.1f}"/>' if level > y + 12 else ""
        parts.append(
            f"<g>{lead}{_mark(row.variant.source.role, x, y, colour)}<title>{escape(text)}: {where}</title>"
            f'<text x="{x + 9:.1f}" y="{level:.1f}">{escape(text)}</text></g>'
        )
    return "".join(parts)


def _axes(right: float, low: float, high: float, metric: str, batch: int) -> str:
    bottom, width = PANEL - BOTTOM, WIDTH - LEFT - RIGHT
    parts = [f'<path class="axis" d="M{LEFT} 8V{bottom}H{LEFT + width}"/>']
    for step in range(5):
        x, y = LEFT + step / 4 * width, 8 + step / 4 * (bottom - 8)
        parts.append(
            f'<text class="soft" x="{x:.0f}" y="{bottom + 16}" text-anchor="middle">{right * step / 4:g}</text>'
        )
        value = high - (high - low) * step / 4
        parts.append(f'<text class="soft" x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{value:.4g}</text>')
    caption = f"ms per image at batch {batch} (median); upwards {escape(metric)} in percent"
    parts.append(f'<text class="soft" x="{LEFT}" y="{bottom + 34}">{caption}</text>')
    return "".join(parts)


def _mark(role: str, x: float, y: float, colour: str) -> str:
    if role == BASELINE:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="none" stroke="{colour}" stroke-width="2"/>'
    if role == ARTIFACT:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" fill="{colour}"/>'
    return f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" fill="{colour}"/>'


def _round_up(value: float) -> float:
    """The next number of the form 1, 2, 4 or 8 times a power of ten, a little above `value`."""
    scale = 10.0 ** math.floor(math.log10(max(value, 1e-9)))
    return next(step * scale for step in (1, 2, 4, 8, 10, 20) if step * scale > 1.02 * value)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Limits around `values` that are at least one point apart, so that noise does not look like a difference."""
    middle, half = (min(values) + max(values)) / 2, max((max(values) - min(values)) * 0.6, 0.5)
    return middle - half, middle + half
