"""Latency of several models measured in turns, so that a busy or throttled machine slows all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Run = Callable[[npt.NDArray[np.float32]], Any]
WARM_UP = 3
SETTLE = 2
UNSTEADY = 3.0  # a p90 so many times the median means that something else used the machine


def unsteady(times: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """`name, batch N` for each timing that varied too much to be relied on."""
    return [
        f"{name}, batch {batch}"
        for name, batches in times.items()
        for batch, found in batches.items()
        if found["p90_ms"] > UNSTEADY * found["median_ms"]
    ]


def time_in_turns(
    runs: Mapping[str, Run],
    batches: Sequence[int],
    input_size: tuple[int, int, int],
    seconds: float = 3.0,
    rounds: tuple[int, int] = (8, 200),
) -> dict[str, dict[str, dict[str, float]]]:
    """Time every run on noise of each batch size, one call each per round.

    Rounds go on for `seconds` per batch size, within the limits `rounds`. Returns, by name and batch size (as text),
    `median_ms` and `p90_ms` per batch.
    """
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in runs}
    for batch in batches:
        least, most = rounds
        for name, taken in time_rounds(runs, noise(batch, input_size), most, least, seconds).items():
            median, p90 = np.percentile(taken, [50, 90])
            found[name][str(batch)] = {"median_ms": round(float(median), 4), "p90_ms": round(float(p90), 4)}
    return found


def time_rounds(
    runs: Mapping[str, Run], images: Any, rounds: int, least: int = 0, seconds: float = math.inf
) -> dict[str, list[float]]:
    """Milliseconds of each run on `images` [B, C, H, W], one timed call of each per round after some to warm up.

    There are `rounds` of them, or as many as begin within `seconds`, but `least` in any case. SETTLE calls that are not
    timed go before each timed one: the model before has filled the caches and memory pools, and the threads of its
    runtime may still spin; the first call after a change was measured to take up to 1.5 times the third.
    """
    for run in runs.values():
        for _ in range(WARM_UP):
            run(images)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    for number in range(rounds):
        if number >= least and time.perf_counter() >= end:
            break
        for name in order(list(runs), number):
            for _ in range(SETTLE):
                runs[name](images)
            begin = time.perf_counter()
            runs[name](images)
            taken[name].append(1000 * (time.perf_counter() - begin))
    return taken


def order(names: Sequence[str], number: int) -> list[str]:
    """The order of round `number`: each name is first in turn, and after each cycle the direction is reversed, so
    that none always follows the same one. (Of two, turning is reversing already.)"""
    cycle, shift = divmod(number, len(names))
    rotated = [*names[shift:], *names[:shift]]
    return rotated[::-1] if cycle % 2 and len(names) > 2 else rotated


def noise(batch: int, size: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """Seeded images float32 [batch, *size]."""
    return np.random.default_rng(0).standard_normal((batch, *size), dtype=np.float32)
