"""Axes, marks and lines as inline SVG. Colours are the page's variables --s0 to --s5, so that they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 250  # in units that are about a pixel on a phone, so that text stays legible there
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 10, 36
COLOURS = tuple(f"var(--s{index})" for index in range(6))
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2 1 2 1 2", "1 2")
SHAPES = ("disc", "square", "diamond", "triangle", "cross", "ring")


@dataclass(frozen=True)
class Frame:
    """The area of a chart, and what its edges stand for."""

    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where the point (x, y) is drawn."""
        across = (x - self.x[0]) / max(self.x[1] - self.x[0], 1e-12)
        up = (y - self.y[0]) / max(self.y[1] - self.y[0], 1e-12)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP)

    def axes(self, label: str) -> str:
        """Grid lines with their values; `label` says what lies along the x axis."""
        parts = []
        for value in ticks(*self.y):
            y = self.place(self.x[0], value)[1]
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(text(LEFT - 6, y + 4, f"{value:.6g}", "end"))
        for value in ticks(*self.x):
            parts.append(text(self.place(value, self.y[0])[0], HEIGHT - BOTTOM + 15, f"{value:.6g}", "middle"))
        bottom = HEIGHT - BOTTOM
        parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
        parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, label, "middle"))
        return "".join(parts)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values within [low, high]: multiples of 1, 2 or 5 times a power of ten, no more than `most` + 1."""
    if high <= low:
        return [low]
    rough = (high - low) / most
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * factor for factor in (1, 2, 5, 10) if scale * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def text(x: float, y: float, words: str, anchor: str = "start", css: str = "soft") -> str:
    """Escaped words with their baseline at (x, y)."""
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def line(
    points: Iterable[tuple[float, float]], colour: str, dash: str = "", width: float = 1.8, title: str = ""
) -> str:
    """A line through points of the drawing, a dot for one alone; `title` shows where it is pointed at."""
    points = list(points)
    if len(points) == 1:
        return mark("disc", *points[0], colour, title, size=3.0)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    said = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"'
        f"{dashes}>{said}</polyline>"
    )


def mark(shape: str, x: float, y: float, colour: str, title: str = "", size: float = 5.0) -> str:
    """A mark of one of `SHAPES` around (x, y)."""
    said = f"<title>{escape(title)}</title>" if title else ""
    paint = f'fill="none" stroke="{colour}" stroke-width="2.2"' if shape in ("ring", "cross") else f'fill="{colour}"'
    if shape in ("ring", "disc"):
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" {paint}>{said}</circle>'
    corners = {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        "triangle": ((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
    }
    if shape == "cross":
        path = f"M{x - size:.1f} {y - size:.1f}l{2 * size:g} {2 * size:g}m0 {-2 * size:g}l{-2 * size:g} {2 * size:g}"
    else:
        path = "M" + "L".join(f"{x + size * dx:.1f} {y + size * dy:.1f}" for dx, dy in corners[shape]) + "Z"
    return f'<path d="{path}" {paint}>{said}</path>'


def figure(
    heading: str, label: str, drawing: str, legend: str = "", size: tuple[float, float] = (WIDTH, HEIGHT)
) -> str:
    """A drawing under its heading; `label` says the same to those who cannot see it, `legend` goes below."""
    return (
        f"<figure><figcaption><b>{escape(heading)}</b> {escape(label)}</figcaption>"
        f'<svg viewBox="0 0 {size[0]:g} {size[1]:g}" role="img" aria-label="{escape(f"{heading}, {label}")}">'
        f"{drawing}</svg>{legend}</figure>"
    )


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """(sample drawn in 24 x 12, name) side by side; '' for none."""
    items = "".join(f'<span><svg viewBox="0 0 24 12">{sample}</svg>{escape(name)}</span>' for sample, name in entries)
    return f'<div class="legend">{items}</div>' if items else ""
