"""Curves of a training: losses, and what a strategy reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from act.run.page.plots import COLOURS, DASHES, Frame, figure, legend, line
from act.train.progress import by_kind


def trained(events: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The training steps that led to the models of `report`, from all events of its folder, oldest first.

    A folder's events go on from run to run: those of a stage that was trained anew, of stages that the recipe no longer
    has, and of attempts after the one that was kept are left out. An attempt that kept a stage has its steps from the
    last attempt before that trained it.
    """
    steps: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    attempt, begun = 1, ""
    for event in events:
        kind = event.get("event")
        if kind == "run":
            attempt = 1
        elif kind == "attempt":
            attempt += 1
        elif kind == "stage":
            begun = _plain(event.get("name"))
        elif kind == "train_resumed":
            begun = ""
        elif "stage" in event and "step" in event:
            key = attempt, _plain(event["stage"])
            if key[1] == begun:
                steps[key], begun = [], ""
            steps.setdefault(key, []).append(event)
    found: list[Mapping[str, Any]] = []
    for stage in report["stages"]:
        name = _plain(stage["name"])
        last = max((number for number, other in steps if other == name and number <= report.get("kept", 1)), default=0)
        found += steps.get((last, name), [])
    return found


def _plain(name: object) -> str:
    """A stage's name, whether it is that of its strategy (QuantAware) or of its folder (quant_aware)."""
    return str(name).replace("_", "").lower()


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
    return {key: {name: sorted(points.items()) for name, points in lines.items()} for key, lines in found.items()}


def loss_chart(events: Sequence[Mapping[str, Any]]) -> str:
    """One chart per stage that trained, '' when none did."""
    charts = []
    for stage, lines in loss_series(events).items():
        curves = [
            Curve(name, points, COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)])
            for i, (name, points) in enumerate(lines.items())
        ]
        charts.append(_chart(stage, "loss", curves))
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
        curves = [
            Curve(kind, points, COLOURS[kinds.index(kind) % 5], DASHES[kinds.index(kind) % 5], 0.8, part)
            for part, points in lines.items()
            if part and (kind := part.rpartition(".")[2])
        ]
        if "" in lines:
            curves.append(Curve("all layers", lines[""], "var(--ink)", "", 2.4))
        charts.append(_chart(stage, name.replace("_", " "), curves))
    return "".join(charts)


@dataclass(frozen=True)
class Curve:
    """`points` are (step, value); curves of one name share an entry of the legend, `title` shows on pointing at it."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    dash: str = ""
    width: float = 1.8
    title: str = ""


def _chart(stage: str, what: str, curves: Sequence[Curve]) -> str:
    points = [point for curve in curves for point in curve.points]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(0.0, *(y for _, y in points)), max(y for _, y in points)
    frame = Frame((first, max(last, first + 1)), (low, high + 0.04 * (high - low) or 1.0))
    drawn = "".join(
        line([frame.place(*point) for point in curve.points], curve.colour, curve.dash, curve.width, curve.title)
        for curve in curves
    )
    shown = {curve.name: curve for curve in curves}
    samples = [(line([(0, 6), (24, 6)], c.colour, c.dash, max(c.width, 1.6)), name) for name, c in shown.items()]
    return figure(stage, what, frame.axes("step") + drawn, legend(samples))
