"""Many runs in one process leave its memory and its open files as they were."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
from pathlib import Path
from statistics import median
from typing import Any

import fault_support as support
import psutil
import pytest

RUNS, SETTLED = 30, 10  # after the first runs, caches and the allocator have what they need


def _runs(recipe: Path, folder: Path, queue: Any) -> None:
    """Runs one after the other; after each, resident MiB, open files and threads."""
    from act.cli.main import main

    process = psutil.Process()
    for number in range(RUNS):
        assert main(["run", str(recipe), "--dir", str(folder / str(number))]) == 0
        shutil.rmtree(folder / str(number))
        gc.collect()
        queue.put((process.memory_info().rss / 2**20, len(os.listdir("/proc/self/fd")), process.num_threads()))


@pytest.mark.slow
def test_thirty_runs_leave_memory_and_files_flat(tmp_path: Path) -> None:
    recipe = support.write_recipe(tmp_path)
    # A process of its own, which has run nothing before.
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_runs, args=(recipe, tmp_path, queue))
    process.start()
    found = [queue.get(timeout=600) for _ in range(RUNS)]
    process.join()
    memory, files, threads = zip(*found, strict=True)
    print(f"MiB: {', '.join(f'{value:.0f}' for value in memory)}; files: {files}; threads: {threads}")
    assert process.exitcode == 0
    assert len(set(files[SETTLED:])) == 1 and len(set(threads[SETTLED:])) == 1
    early, late = median(memory[SETTLED : SETTLED + 5]), median(memory[-5:])
    # torch.export keeps the ShapeEnv of every model that it traces, about 1 MiB for the two of a run; nothing else may
    # add to that.
    assert late - early < 0.03 * early, f"{early:.0f} MiB after {SETTLED} runs, {late:.0f} MiB after {RUNS}"
