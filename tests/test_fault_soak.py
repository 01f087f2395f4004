"""Many runs in one process leave its memory and its open files as they were."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import psutil
import pytest

RUNS, SETTLED = 30, 10  # after the first runs, caches and the allocator have what they need
# The embedded example as it is, but for fewer steps, the goal that these miss, and one timing in place of two.
QUICKSTART = [
    *("quickstart", "TrainConfig.epochs=null", "TrainConfig.train_iter=4", "TrainConfig.warmup_iter=1"),
    *("TrainConfig.stages.QuantAware={epochs: null, train_iter: 4}", "~target"),
    "export.benchmark_batches=[1]",
]


def _runs(folder: Path) -> list[tuple[float, int, int]]:
    """Runs one after the other; after each, resident MiB, open files and threads."""
    from act.cli.main import main

    process, found = psutil.Process(), []
    for number in range(RUNS):
        assert main(["run", *QUICKSTART, "--dir", str(folder / str(number))]) == 0
        shutil.rmtree(folder / str(number))
        gc.collect()
        found.append((process.memory_info().rss / 2**20, len(os.listdir("/proc/self/fd")), process.num_threads()))
    return found


@pytest.mark.slow
def test_thirty_runs_leave_memory_and_files_flat(tmp_path: Path) -> None:
    # A process of its own, which has run nothing before.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        memory, files, threads = zip(*pool.submit(_runs, tmp_path).result(), strict=True)
    print(f"MiB: {', '.join(f'{value:.0f}' for value in memory)}; files: {files}; threads: {threads}")
    assert len(set(files[SETTLED:])) == 1 and len(set(threads[SETTLED:])) == 1
    early, late = median(memory[SETTLED : SETTLED + 5]), median(memory[-5:])
    # From one run to the next the figure goes up and down by 15 MiB.
    assert late - early < 0.02 * early, f"{early:.0f} MiB after {SETTLED} runs, {late:.0f} MiB after {RUNS}"
