"""Accuracy against cost, every trial a point, as SVG (matplotlib)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from act.search.figures import Trial

if TYPE_CHECKING:
    from act.recipe.schema import Recipe

GREEN, RED, GREY, BLUE = "#26a269", "#c64600", "#5f6b7a", "#1a5fb4"
_COSTS = {"latency": "ms per batch", "speedup": "times the speed of the original", "bytes": "MB"}
_MARKS = {
    "met": ("meets the target", "o", GREEN),
    "missed": ("misses it", "x", RED),
    "no_target": ("trial", "o", BLUE),
}
_STYLE = {"svg.hashsalt": "vitcompress", "svg.fonttype": "none", "font.size": 9}


def matplotlib_missing() -> str | None:
    """None, or what to install for pictures."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return "no picture: matplotlib is missing; pip install 'vitcompress[report]'"
    return None


def draw(
    trials: Sequence[Trial], front: Sequence[Trial], best: Trial | None, objectives: Sequence[str], recipe: Recipe
) -> str:
    """The picture: the first cost among `objectives` to the right (else latency), accuracy in percent upwards.

    Trials that meet the target are discs, those that miss it crosses, the original is a ring; dotted lines are the
    target's limits. With two objectives a line joins the trials that no other surpasses.
    """
    import matplotlib
    from matplotlib.figure import Figure

    cost = next((name for name in objectives if name in _COSTS), "latency")
    accuracy = next((name for name in objectives if name not in _COSTS), "accuracy")
    done = [trial for trial in trials if trial.done and {cost, accuracy} <= set(trial.figures)]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes: Any = figure.add_subplot()
        _points(axes, done, cost, accuracy)
        if len(objectives) == 2 and len(front) > 1:
            steps = "steps-pre" if cost == "speedup" else "steps-post"
            places = sorted(_place(trial.figures, cost, accuracy) for trial in front if trial in done)
            axes.plot(*zip(*places, strict=True), color=BLUE, lw=1, zorder=2, drawstyle=steps, label="not surpassed")
        if best in done:
            x, y = _place(best.figures, cost, accuracy)
            axes.plot(x, y, ls="none", marker="o", ms=13, mfc="none", mec=GREEN, label="best")
        if done:
            _original(axes, done, cost, accuracy)
            _limits(axes, done[0].original, recipe, cost, accuracy)
        else:
            axes.text(0.5, 0.5, f"no trial has {accuracy} and {cost}", transform=axes.transAxes, ha="center")
        _finish(axes, recipe, cost, done[0].figures["metric"] if done and accuracy == "accuracy" else accuracy)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _place(figures: dict[str, Any], cost: str, accuracy: str) -> tuple[float, float]:
    return figures[cost] / (1e6 if cost == "bytes" else 1.0), figures[accuracy]


def _points(axes: Any, done: Sequence[Trial], cost: str, accuracy: str) -> None:
    for state, (label, marker, colour) in _MARKS.items():
        places = {trial.number: _place(trial.figures, cost, accuracy) for trial in done if trial.state == state}
        if places:
            axes.plot(*zip(*places.values(), strict=True), marker, color=colour, label=label, zorder=3)
        for number, place in places.items():
            axes.annotate(str(number), place, xytext=(5, 4), textcoords="offset points", color=GREY)


def _original(axes: Any, done: Sequence[Trial], cost: str, accuracy: str) -> None:
    # Each trial timed the original anew; the middle one shows where it usually lies.
    places = sorted(_place(trial.original, cost, accuracy) for trial in done)
    ring = {"ls": "none", "marker": "o", "mfc": "none", "mec": GREY}
    axes.plot(*places[len(places) // 2], label="original", **ring)


def _limits(axes: Any, original: dict[str, Any], recipe: Recipe, cost: str, accuracy: str) -> None:
    target = recipe.target
    upright = {"latency": target.latency_ms, "speedup": target.speedup, "bytes": target.bytes}[cost]
    level = target.min_agreement
    if accuracy == "accuracy":
        sign = -1 if recipe.train.metric_mode == "max" else 1
        level = None if target.max_drop is None else original["accuracy"] + sign * target.max_drop
    style = {"color": GREY, "lw": 1, "ls": ":"}
    if upright is not None:
        axes.axvline(upright / (1e6 if cost == "bytes" else 1.0), **style)
    if level is not None:
        axes.axhline(level, **style)
    if upright is not None or level is not None:
        axes.plot([], [], **style, label="target")


def _finish(axes: Any, recipe: Recipe, cost: str, metric: str) -> None:
    timed = f" at batch {recipe.target.batch} ({recipe.target.backend}, median)" if cost != "bytes" else ""
    axes.set_xlabel(_COSTS[cost] + timed)
    axes.set_ylabel(f"{metric} in percent")
    axes.set_title(recipe.name, loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
