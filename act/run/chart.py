"""Curves of a training (losses, and what a strategy reports) as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from act.train.progress import by_kind

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 200, 52, 24
COLOURS = ("#1a5fb4", "#c64600", "#26a269", "#813d9c", "#a51d2d", "#986a44")


def loss_series(events: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """(step, value) by stage and loss term, from events that carry `stage`, `step` and `losses`."""
    found: dict[str, dict[str, dict[float, float]]] = {}
    for event in events:
        step, terms = event.get("step"), by_kind(event.get("losses") or {})
        if len(terms) > 1 and "loss" in event:
            terms = {"total": event["loss"]} | terms
        for name, value in terms.items():
            if isinstance(step, int) and isinstance(value, int | float) and math.isfinite(value):
                # By step, since a run that was resumed logs the steps after its last checkpoint again.
                found.setdefault(str(event.get("stage", "training")), {}).setdefault(name, {})[step] = float(value)
    return {key: {name: sorted(line.items()) for name, line in lines.items()} for key, lines in found.items()}


def loss_chart(events: Sequence[Mapping[str, Any]]) -> str:
    """One chart per stage that trained, '' when none did."""
    charts = []
    for stage, lines in loss_series(events).items():
        curves = [Curve(name, points, COLOURS[i % len(COLOURS)]) for i, (name, points) in enumerate(lines.items())]
        charts.append(_chart(stage, "loss by step", curves))
    return "".join(charts)


def value_series(events: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, list[tuple[float, float]]]]:
    """(step, value) by (stage, value) and part: events carry `values` such as `mask_flip_rate`, the part '', and
    `mask_flip_rate.blocks.0.mlp.fc1`."""
    found: dict[tuple[str, str], dict[str, dict[float, float]]] = {}
    for event in events:
        step = event.get("step")
        for key, value in (event.get("values") or {}).items():
            name, _, part = key.partition(".")
            if isinstance(step, int) and isinstance(value, int | float) and math.isfinite(value):
                parts = found.setdefault((str(event.get("stage", "training")), name), {})
                parts.setdefault(part, {})[step] = float(value)
    return {key: {part: sorted(line.items()) for part, line in lines.items()} for key, lines in found.items()}


def value_chart(events: Sequence[Mapping[str, Any]]) -> str:
    """One chart per value that a strategy reported while training, with a thin line per layer, layers of a kind
    (`qkv`, `fc1`, ...) in one colour; '' when there is none."""
    charts = []
    for (stage, name), lines in value_series(events).items():
        kinds = list(dict.fromkeys(part.rpartition(".")[2] for part in lines if part))
        colours = {kind: COLOURS[i % len(COLOURS)] for i, kind in enumerate(kinds)}
        curves = [
            Curve(kind, points, colours[kind], 0.6, part)
            for part, points in lines.items()
            if part and (kind := part.rpartition(".")[2])
        ]
        if "" in lines:
            curves.append(Curve("all layers", lines[""], "currentColor", 2.0))
        label = name.replace("_", " ")
        charts.append(_chart(f"{stage}: {label}", f"{label} by step", curves))
    return "".join(charts)


@dataclass(frozen=True)
class Curve:
    """`points` are (step, value); curves of one name share an entry of the legend, `title` shows on pointing at it."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    width: float = 1.5
    title: str = ""


def _chart(heading: str, label: str, curves: Sequence[Curve]) -> str:
    points = [point for curve in curves for point in curve.points]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(0.0, *(y for _, y in points)), max(y for _, y in points)

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (step - first) / max(last - first, 1) * (WIDTH - LEFT - 8)
        y = 8 + (high - value) / max(high - low, 1e-12) * (HEIGHT - BOTTOM - 8)
        return x, y

    drawn = []
    for curve in curves:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve.points))
        style = f'fill="none" stroke="{curve.colour}" stroke-width="{curve.width}"'
        title = f"<title>{escape(curve.title)}</title>" if curve.title else ""
        drawn.append(f'<polyline points="{path}" {style}>{title}</polyline>')
    colours = {curve.name: curve.colour for curve in curves}
    legend = [f'<span style="color:{colour}">{escape(name)}</span>' for name, colour in colours.items()]
    axis = "".join(
        f'<text x="{LEFT - 6}" y="{place(first, value)[1] + 4:.0f}" text-anchor="end">{value:.3g}</text>'
        for value in (low, high)
    )
    axis += f'<text x="{LEFT}" y="{HEIGHT - 4}">step {first:g}</text>'
    axis += f'<text x="{WIDTH - 8}" y="{HEIGHT - 4}" text-anchor="end">{last:g}</text>'
    size = f'width="{WIDTH - LEFT - 8}" height="{HEIGHT - BOTTOM - 8}"'
    box = f'<rect x="{LEFT}" y="8" {size} fill="none" stroke="#8888"/>'
    return (
        f"<p><b>{escape(heading)}</b> {' '.join(legend)}</p>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" font-size="11" '
        f'fill="currentColor">{box}{"".join(drawn)}{axis}</svg>'
    )
