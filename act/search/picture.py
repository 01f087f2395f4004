"""Accuracy against cost, every trial a point, as SVG (matplotlib)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from act.search.figures import Trial

if TYPE_CHECKING:
    from act.recipe.schema import Recipe

GREEN, RED, GREY, BLUE = "#26a269", "#c64600", "#5f6b7a", "#1a5fb4"
_COSTS = {"latency": "ms", "bytes": "MB"}


def matplotlib_missing() -> str | None:
    """None, or what to install for pictures."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return "no picture: matplotlib is missing; pip install 'vitcompress[report]'"
    return None


def draw(trials: Sequence[Trial], front: Sequence[Trial], best: Trial | None, recipe: Recipe) -> str:
    """The picture: latency in ms to the right (bytes where nothing was timed), accuracy in percent upwards.

    Trials that meet the target are discs, those that miss it crosses, the original is a ring; a line joins the trials
    that no other surpasses, and dotted lines are the target's limits.
    """
    import matplotlib
    from matplotlib.figure import Figure

    done = [trial for trial in trials if trial.done and "accuracy" in trial.figures]
    cost = "latency" if all("latency" in trial.figures for trial in done) else "bytes"
    scale = 1e6 if cost == "bytes" else 1.0
    with matplotlib.rc_context({"svg.hashsalt": "vitcompress", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for trial in done:
            met = trial.state != "missed"
            place = (trial.figures[cost] / scale, trial.figures["accuracy"])
            axes.plot(*place, "o" if met else "x", color=GREEN if met else RED, zorder=3)
            axes.annotate(str(trial.number), place, xytext=(5, 4), textcoords="offset points", color=GREY)
        if not done:
            axes.text(0.5, 0.5, "no accuracy was measured", transform=axes.transAxes, ha="center")
        _front(axes, front, cost, scale)
        _original(axes, done, cost, scale)
        _limits(axes, done, recipe, cost, scale)
        if best is not None and best in done:
            axes.plot(
                best.figures[cost] / scale, best.figures["accuracy"], "o", ms=13, mfc="none", mec=GREEN, label="best"
            )
        _finish(axes, done, recipe, cost)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _front(axes: Any, front: Sequence[Trial], cost: str, scale: float) -> None:
    points = sorted(
        (trial.figures[cost] / scale, trial.figures["accuracy"]) for trial in front if "accuracy" in trial.figures
    )
    if len(points) > 1:
        axes.plot(*zip(*points, strict=True), color=BLUE, lw=1, zorder=2, label="not surpassed")


def _original(axes: Any, done: Sequence[Trial], cost: str, scale: float) -> None:
    if done:
        # Each trial timed the original anew; the median shows where it usually lies.
        costs = sorted(trial.original[cost] / scale for trial in done)
        middle = costs[len(costs) // 2]
        axes.plot(middle, done[0].original["accuracy"], "o", mfc="none", mec=GREY, label="original")


def _limits(axes: Any, done: Sequence[Trial], recipe: Recipe, cost: str, scale: float) -> None:
    target = recipe.target
    limit = target.latency_ms if cost == "latency" else target.bytes
    style = {"color": GREY, "lw": 1, "ls": ":"}
    if limit is not None:
        axes.axvline(limit / scale, **style)
    if target.max_drop is not None and done:
        sign = -1 if recipe.train.metric_mode == "max" else 1
        axes.axhline(done[0].original["accuracy"] + sign * target.max_drop, **style)
    if limit is not None or target.max_drop is not None:
        axes.plot([], [], **style, label="target")


def _finish(axes: Any, done: Sequence[Trial], recipe: Recipe, cost: str) -> None:
    batch = f" at batch {recipe.target.batch} ({recipe.target.backend}, median)" if cost == "latency" else ""
    axes.set_xlabel(f"{'ms per batch' if cost == 'latency' else 'MB'}{batch}")
    axes.set_ylabel(f"{done[0].figures['metric'] if done else 'accuracy'} in percent")
    axes.set_title(recipe.name, loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if done:
        axes.legend(frameon=False)
