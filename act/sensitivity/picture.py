"""A heat map of what was measured: layers downwards, treatments to the right."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

from act.run.atomic import replacing
from act.sensitivity.measure import Measured

FORMATS = (".svg", ".png", ".pdf")
_ROW, _COLUMN = 0.19, 1.15  # inches
_FLOOR = 1e-9  # a divergence below is drawn as this


def picture_problem(path: Path) -> str | None:
    """Why no picture can be written to `path`, in one line; None when one can."""
    if path.suffix not in FORMATS:
        return f"--picture: {path}: the format follows from the ending; allowed: {', '.join(FORMATS)}"
    if importlib.util.find_spec("matplotlib") is None:
        return "--picture: matplotlib is not installed; pip install 'vitcompress[report]', or leave --picture out"
    return None


def cells(found: Measured) -> tuple[list[str], list[str], dict[tuple[str, str], float]]:
    """Layers, treatments, and the KL divergence of each pair. A group's cost stands at each of its layers."""
    values: dict[tuple[str, str], float] = {}
    for cost in found.costs:
        for layer in cost.layers if cost.kind in ("heads", "mlp") else (cost.layer,):
            values[layer, cost.treatment] = cost.kl
    drawn = dict.fromkeys(layer for layer, _ in values)
    layers = [layer for layer in found.order if layer in drawn]
    return layers + [layer for layer in drawn if layer not in layers], list(found.left), values


def write_picture(path: Path, found: Measured, title: str) -> None:
    """Draw `found` into `path`, whose ending gives the format; colours are logarithms of the KL divergence."""
    import numpy as np
    from matplotlib.figure import Figure

    layers, treatments, values = cells(found)
    grid = np.full((len(layers), len(treatments)), np.nan)
    for (layer, treatment), kl in values.items():
        grid[layers.index(layer), treatments.index(treatment)] = math.log10(max(kl, _FLOOR))
    longest = max(map(len, layers), default=0)
    size = (_COLUMN * len(treatments) + 0.085 * longest + 1.2, _ROW * len(layers) + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("#d8dce0")
    image = axes.imshow(grid, aspect="auto", cmap="inferno", interpolation="nearest")
    axes.set_xticks(range(len(treatments)), treatments)
    axes.set_yticks(range(len(layers)), layers)
    axes.tick_params(labelsize=7, length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    remark = "KL divergence of one change alone; grey: left out\nheads and MLP units: at each of their layers"
    axes.set_title(f"{title}\n{remark}", fontsize=8)
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for (layer, treatment), kl in values.items():
        row, column = layers.index(layer), treatments.index(treatment)
        colour = "black" if grid[row, column] > middle else "white"
        axes.text(column, row, f"{kl:.1e}", ha="center", va="center", fontsize=6, color=colour)
    bar = figure.colorbar(image, ax=axes, aspect=40, pad=0.02)
    bar.set_label("log10 of the KL divergence in nats", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
