"""Which group shrinks to which size: the least loss for a given cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from act.structure.reducer import Size

BINS = 4000


@dataclass(frozen=True)
class Option:
    """A size of a group, what it then costs, and what accuracy that loses."""

    size: Size
    cost: float
    loss: float


def allocate(options: Mapping[str, Sequence[Option]], budget: float) -> dict[str, Size]:
    """One option per group such that the costs stay within `budget` and the sum of the losses is least.

    Dynamic programming over the cost above that of the cheapest options, in `BINS` steps (rounded up, so that the
    budget holds). Where even the cheapest options cost more than the budget, those are returned.
    """
    floor = {name: min(option.cost for option in choices) for name, choices in options.items()}
    spare = budget - sum(floor.values())
    unit = max(spare, 1e-12) / BINS
    best = np.zeros(BINS + 1)
    chosen: list[np.ndarray] = []
    names = list(options)
    for name in names:
        total = np.full(BINS + 1, np.inf)
        choice = np.zeros(BINS + 1, dtype=np.int64)
        for index, option in enumerate(options[name]):
            steps = _steps(option.cost - floor[name], unit)
            if steps > BINS:
                continue
            candidate = np.full(BINS + 1, np.inf)
            candidate[steps:] = best[: BINS + 1 - steps] + option.loss
            better = candidate < total
            total[better], choice[better] = candidate[better], index
        best = total
        chosen.append(choice)
    if spare < 0:
        return {name: min(options[name], key=lambda option: option.cost).size for name in names}
    left, sizes = BINS, {}
    for name, choice in zip(reversed(names), reversed(chosen), strict=True):
        option = options[name][int(choice[left])]
        sizes[name] = option.size
        left -= _steps(option.cost - floor[name], unit)
    return {name: sizes[name] for name in names}


def _steps(cost: float, unit: float) -> int:
    return int(min(BINS + 1, np.ceil(cost / unit - 1e-9)))


def levels(size: int, align: int, steps: int, least: int = 1) -> list[int]:
    """Sizes to consider, from `size` down to a `steps`-th of it: multiples of `align` (the full size always)."""
    wanted = {max(least, round(size * step / steps / align) * align) for step in range(1, steps)}
    return [size, *sorted((value for value in wanted if 0 < value < size), reverse=True)]
