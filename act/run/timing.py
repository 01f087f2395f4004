"""Latency of several models measured in turns, so that a busy or throttled machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Run = Callable[[npt.NDArray[np.float32]], Any]
WARM_UP = 3
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
        images = np.random.default_rng(0).standard_normal((batch, *input_size), dtype=np.float32)
        for run in runs.values():
            for _ in range(WARM_UP):
                run(images)
        times: dict[str, list[float]] = {name: [] for name in runs}
        end = time.perf_counter() + seconds
        done = 0
        while done < rounds[0] or (done < rounds[1] and time.perf_counter() < end):
            # Every other round backwards, so that none always follows the same one.
            for name, run in list(runs.items())[:: 1 if done % 2 == 0 else -1]:
                begin = time.perf_counter()
                run(images)
                times[name].append(1000 * (time.perf_counter() - begin))
            done += 1
        for name, taken in times.items():
            median, p90 = np.percentile(taken, [50, 90])
            found[name][str(batch)] = {"median_ms": round(float(median), 4), "p90_ms": round(float(p90), 4)}
    return found
