"""Loss curves as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    return "".join(_chart(stage, lines) for stage, lines in loss_series(events).items())


def _chart(stage: str, lines: Mapping[str, list[tuple[float, float]]]) -> str:
    points = [point for line in lines.values() for point in line]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(0.0, *(y for _, y in points)), max(y for _, y in points)

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (step - first) / max(last - first, 1) * (WIDTH - LEFT - 8)
        y = 8 + (high - value) / max(high - low, 1e-12) * (HEIGHT - BOTTOM - 8)
        return x, y

    drawn, legend = [], []
    for index, (name, line) in enumerate(lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        legend.append(f'<span style="color:{colour}">{escape(name)}</span>')
    axis = "".join(
        f'<text x="{LEFT - 6}" y="{place(first, value)[1] + 4:.0f}" text-anchor="end">{value:.3g}</text>'
        for value in (low, high)
    )
    axis += f'<text x="{LEFT}" y="{HEIGHT - 4}">step {first:g}</text>'
    axis += f'<text x="{WIDTH - 8}" y="{HEIGHT - 4}" text-anchor="end">{last:g}</text>'
    size = f'width="{WIDTH - LEFT - 8}" height="{HEIGHT - BOTTOM - 8}"'
    box = f'<rect x="{LEFT}" y="8" {size} fill="none" stroke="#8888"/>'
    return (
        f"<p><b>{escape(stage)}</b> {' '.join(legend)}</p>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss by step" font-size="11" '
        f'fill="currentColor">{box}{"".join(drawn)}{axis}</svg>'
    )
