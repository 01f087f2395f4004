"""Latency against accuracy: the original, every exported file, attempts, and several runs in one picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from act.run.page.parts import called, metrics
from act.run.page.plots import (
    COLOURS,
    HEIGHT,
    LEFT,
    RIGHT,
    SHAPES,
    TOP,
    WIDTH,
    Frame,
    figure,
    legend,
    line,
    mark,
    text,
)
from act.run.page.summary import RUNTIMES

LETTER, LINE = 6.2, 13.0  # width and height of a letter in the drawing's units


@dataclass(frozen=True)
class Point:
    """A file in a runtime at a batch size, and its accuracy in percent.

    `time`: milliseconds per batch, or percent of what the original takes in the same runtime. `group` is what colour
    and shape stand for.
    """

    batch: str
    group: str
    name: str
    time: float
    value: float
    original: bool = False


def points_of(report: Mapping[str, Any]) -> list[Point]:
    """The original and every file of a report that was scored and timed, by runtime; files of its attempts, too."""
    names = metrics(report)
    if not names:
        return []
    metric, base = names[0], report["baseline"]
    before = base.get(metric, 100.0 if metric == "agreement" else None)
    found = [
        Point(batch, RUNTIMES.get(backend, backend), "original", timing["median_ms"], before, True)
        for backend, batches in base.get("latency", {}).items()
        for batch, timing in batches.items()
        if before is not None
    ]
    attempts = [
        (f"attempt {attempt['number']}, ", item)
        for attempt in report.get("attempts", [])
        if attempt["number"] != report["kept"]
        for item in attempt.get("artifacts", [])
    ]
    return found + [
        Point(batch, RUNTIMES.get(backend, backend), prefix + item["format"], timing["median_ms"], item[metric])
        for prefix, item in [("", item) for item in report["artifacts"]] + attempts
        for backend, batches in item.get("latency", {}).items()
        for batch, timing in batches.items()
        if metric in item
    ]


def relative_points(report: Mapping[str, Any], run: str) -> list[Point]:
    """The points of one of several runs, times in percent of its own original's: machines and their loads differ."""
    found = points_of(report)
    whole = {(point.batch, point.group): point.time for point in found if point.original}
    return [
        dataclasses.replace(point, group=run, time=100 * point.time / whole[point.batch, point.group])
        for point in found
        if (point.batch, point.group) in whole
    ]


def scatter(report: Mapping[str, Any]) -> str:
    """One picture per batch size, with the accuracy after each stage as a level; '' where nothing was timed."""
    names = metrics(report)
    levels = {f"after {s['name']}": s[names[0]] for s in report["stages"] if names and names[0] in s}
    return pictures(points_of(report), levels, names[0] if names else "")


def pictures(points: Sequence[Point], levels: Mapping[str, float], metric: str, relative: bool = False) -> str:
    """One picture of `points` per batch size; `levels` are accuracies of models that were not timed, `relative` says
    that times are in percent."""
    groups = list(dict.fromkeys(point.group for point in points))
    return "".join(
        _picture(batch, [point for point in points if point.batch == batch], levels, metric, groups, relative)
        for batch in dict.fromkeys(point.batch for point in points)
    )


def _picture(
    batch: str,
    points: Sequence[Point],
    levels: Mapping[str, float],
    metric: str,
    groups: Sequence[str],
    relative: bool,
) -> str:
    values = [point.value for point in points] + list(levels.values())
    # At least a point high, so that noise does not look like a difference.
    half = max((max(values) - min(values)) * 0.62, 0.5)
    middle = (max(values) + min(values)) / 2
    frame = Frame((0.0, 1.12 * max(point.time for point in points)), (middle - half, middle + half))
    placed = [(point, *frame.place(point.time, point.value)) for point in points]
    taken = [(x - 7, y - 7, x + 7, y + 7) for _, x, y in placed]
    unit = "percent of the original's time" if relative else "milliseconds"
    drawn = [frame.axes(f"{unit} per batch of {batch} (median)")]
    for name, value in levels.items():
        y = frame.place(0, value)[1]
        drawn.append(line([(LEFT, y), (WIDTH - RIGHT, y)], "var(--soft)", "2 4", 1.0, f"{name}: {value:.2f}"))
    for name, value in levels.items():
        y = frame.place(0, value)[1]
        starts = (LEFT + 4, WIDTH - RIGHT - LETTER * len(name), (LEFT + WIDTH - RIGHT - LETTER * len(name)) / 2)
        spots = [(x, level) for level in (y - 4, y + LINE) for x in starts]
        drawn.append(text(*_free(name, spots, taken), name, css="soft label"))
    for point, x, y in placed:
        index = groups.index(point.group)
        shape = "ring" if point.original else SHAPES[index % 5]
        said = f"{point.group}, {point.name}: {point.time:.2f} {'%' if relative else 'ms'}, {point.value:.2f}"
        drawn.append(mark(shape, x, y, COLOURS[index % len(COLOURS)], said))
        if point.original:
            continue  # the legend says what rings are
        length = LETTER * len(point.name)
        spots = [(x + 9, y + 4), (x - 9 - length, y + 4), (x - length / 2, y - 10), (x - length / 2, y + 19)]
        spots += [(x + 9, y - 8), (x + 9, y + 16), (x - 9 - length, y - 8), (x - 9 - length, y + 16)]
        drawn.append(text(*_free(point.name, spots, taken), point.name, css="label"))
    samples = [
        (mark(SHAPES[index % 5], 12, 6, COLOURS[index % len(COLOURS)]), group) for index, group in enumerate(groups)
    ]
    samples.append((mark("ring", 12, 6, "var(--ink)"), "original"))
    return figure(
        f"Batch {batch}",
        f"{called(metric)} by {'time' if relative else 'latency'}; left and up is better",
        "".join(drawn),
        legend(samples),
    )


def _free(
    words: str, spots: Sequence[tuple[float, float]], taken: list[tuple[float, float, float, float]]
) -> tuple[float, float]:
    """The first of `spots` (baseline starts) where `words` cover nothing, else where least; added to `taken`."""

    def box(spot: tuple[float, float]) -> tuple[float, float, float, float]:
        return spot[0], spot[1] - LINE + 3, spot[0] + LETTER * len(words), spot[1] + 3

    def covered(spot: tuple[float, float]) -> float:
        left, top, right, bottom = box(spot)
        area = sum(
            max(0.0, min(right, other[2]) - max(left, other[0])) * max(0.0, min(bottom, other[3]) - max(top, other[1]))
            for other in taken
        )
        outside = max(0.0, LEFT - left) + max(0.0, right - WIDTH) + max(0.0, TOP - 6 - top) + max(0.0, bottom - HEIGHT)
        return area + 100 * outside

    best = min(spots, key=covered)
    taken.append(box(best))
    return best
