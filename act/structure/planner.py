"""Options for every group of units, and the choice among them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from act.structure.allocate import Option, levels
from act.structure.axes import HEADS, HIDDEN, Q, V
from act.structure.cost import full_size
from act.structure.curves import OutputLoss
from act.structure.reducer import Reducer, Size
from act.structure.units import AttentionUnits, Group, MlpUnits

UNITS = ("heads", "qk", "v", "mlp")
DIMS = "dims"  # those of q, k and v together, of one size
ALLOCATIONS = ("measured", "global", "uniform")
Cost = Callable[[str, Size], float]  # of a group at a size
Curve = Mapping[int, float]  # loss by size


@dataclass(frozen=True)
class Space:
    """What may shrink, in which steps, and how far."""

    units: Sequence[str] = UNITS
    align: int = 8
    steps: int = 8  # sizes measured between nothing and everything

    def sizes(self, group: Group) -> dict[str, list[int]]:
        """The sizes of each part of a group that may shrink, the present one first."""
        if isinstance(group, MlpUnits):
            return {"mlp": levels(group.hidden, self.align, self.steps, self.align)} if "mlp" in self.units else {}
        wanted = {
            "heads": (group.heads_reason, list(range(group.heads, 0, -max(1, group.heads // 6)))),
            "qk": (group.qk_reason, levels(group.qk_dim, self.align, 4, self.align)),
            "v": (group.v_reason, levels(group.v_dim, self.align, 4, self.align)),
        }
        return {unit: sizes for unit, (reason, sizes) in wanted.items() if reason is None and unit in self.units}


def part_size(group: Group, unit: str, size: int) -> Size:
    """The size of a group with one part of it changed."""
    if isinstance(group, MlpUnits):
        return (size,)
    changed = {"qk": size, "v": size} if unit == DIMS else {unit: size}
    full = {"heads": group.heads, "qk": group.qk_dim, "v": group.v_dim} | changed
    return full["heads"], full["qk"], full["v"]


def measured_losses(
    space: Space, reducer: Reducer, loss: OutputLoss, progress: Callable[[str], None]
) -> dict[str, dict[str, Curve]]:
    """Nats that each size of each part costs alone, never falling as the size falls."""
    found: dict[str, dict[str, Curve]] = {}
    groups = reducer.found.groups
    for number, group in enumerate(groups, 1):
        curves: dict[str, Curve] = {}
        for unit, sizes in space.sizes(group).items():
            worst, curve = 0.0, {sizes[0]: 0.0}
            for size in sizes[1:]:
                worst = max(worst, loss.of(group.name, reducer.stand_in(group.name, part_size(group, unit, size))))
                curve[size] = worst
            curves[unit] = curve
        found[group.name] = curves
        progress(f"{number}/{len(groups)} {group.name}: {_shown(curves)}")
    return found


def _shown(curves: Mapping[str, Curve]) -> str:
    return "; ".join(f"{unit} " + " ".join(f"{s}:{v:.4f}" for s, v in curve.items()) for unit, curve in curves.items())


def scored_losses(space: Space, reducer: Reducer) -> dict[str, dict[str, Curve]]:
    """The saliency that each size of each part gives up. Scores that are not in nats are made comparable between
    groups by dividing by the group's root mean square (as NViT and its kin do for magnitudes)."""
    found: dict[str, dict[str, Curve]] = {}
    segments = {"heads": HEADS, "qk": Q, "v": V, "mlp": HIDDEN}
    for group in reducer.found.groups:
        curves: dict[str, Curve] = {}
        for unit, sizes in space.sizes(group).items():
            scores = reducer.scores[group.name][segments[unit]].double()
            if reducer.criterion != "taylor":
                scores = scores / scores.square().mean().sqrt()
            ordered = (scores.sort(-1).values.sum(0) if scores.dim() == 2 else scores.sort().values).cumsum(0)
            curves[unit] = {size: float(ordered[sizes[0] - size - 1]) if size < sizes[0] else 0.0 for size in sizes}
        found[group.name] = curves
    return found


def options(
    space: Space, groups: Sequence[Group], losses: Mapping[str, Mapping[str, Curve]], cost: Cost
) -> dict[str, list[Option]]:
    """Every size of every group with cost and loss. Between measured sizes the loss is interpolated; what the parts
    of an attention lose is added, dimensions in proportion to the heads that are left."""
    found: dict[str, list[Option]] = {}
    for group in groups:
        curves = {
            unit: _fine(curve, 1 if unit == "heads" else space.align) for unit, curve in losses[group.name].items()
        }
        if isinstance(group, AttentionUnits):
            heads = curves.get("heads", {group.heads: 0.0})
            wide, narrow = curves.get("qk", {group.qk_dim: 0.0}), curves.get("v", {group.v_dim: 0.0})
            sizes = {
                (h, q, v): heads[h] + (wide[q] + narrow[v]) * h / group.heads
                for h, q, v in itertools.product(heads, wide, narrow)
            }
        else:
            sizes = {(hidden,): loss for hidden, loss in curves.get("mlp", {group.hidden: 0.0}).items()}  # type: ignore[misc]
        found[group.name] = [Option(size, cost(group.name, size), loss) for size, loss in sizes.items()]
    return found


def _fine(curve: Curve, align: int) -> dict[int, float]:
    sizes = sorted(curve)
    wanted = {*sizes, *(size for size in range(sizes[0], sizes[-1], align) if size % align == 0)}
    return {size: float(np.interp(size, sizes, [curve[s] for s in sizes])) for size in sorted(wanted, reverse=True)}


def uniform(space: Space, groups: Sequence[Group], cost: Cost, budget: float) -> dict[str, Size]:
    """The largest common share of units, kept in every part that may shrink, whose cost stays within `budget`."""
    best: dict[str, Size] = {}
    for share in np.linspace(0.02, 1.0, 197):
        sizes = {group.name: _share(space, group, float(share)) for group in groups}
        if not best or sum(cost(name, size) for name, size in sizes.items()) <= budget:
            best = sizes
    return best


def _share(space: Space, group: Group, share: float) -> Size:
    size = full_size(group)
    # Dimensions shrink instead of whole heads where they can: both would take the same share twice.
    parts = space.sizes(group)
    if "qk" in parts and "v" in parts:
        parts.pop("heads", None)
    for unit, sizes in parts.items():
        align = 1 if unit == "heads" else space.align
        wanted = max(min(align, sizes[0]), int(share * sizes[0] / align + 1e-9) * align)
        index = {"mlp": 0, "heads": 0, "qk": 1, "v": 2}[unit]
        size = (*size[:index], min(sizes[0], wanted), *size[index + 1 :])
    return size
