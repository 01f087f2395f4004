"""Data loading workers go on when the whole process group is told to end, and end with the process that reads them."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from act.data.workers import heed_reader_only


class Numbers(Dataset[Tensor]):
    """0 to 11; the one that reads 2 sends its group's SIGTERM, as Slurm would, to itself."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        if index == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        return torch.tensor(index)


def gone(pid: int) -> bool:
    """Whether the process has ended; an ended child that nobody has waited for yet counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="signals carry no sender here")
def test_workers_serve_on_after_a_signal_to_all_and_end_with_their_reader() -> None:
    loader = DataLoader(
        Numbers(),
        num_workers=2,
        worker_init_fn=heed_reader_only,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    batches = iter(loader)
    workers = [worker.pid for worker in batches._workers]  # type: ignore[attr-defined]
    assert [int(batch) for batch in batches] == list(range(12))
    assert not any(map(gone, workers))
    os.kill(workers[0], signal.SIGTERM)  # as torch does when a worker does not end by itself
    deadline = time.monotonic() + 30
    while not gone(workers[0]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not gone(workers[1])
