"""Which of several processes this one is; one alone is the main one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState

T = TypeVar("T")


def state() -> PartialState:
    """Accelerate's state, joined as `accelerate launch` or `torchrun` says; the CPU where there is no GPU."""
    return PartialState(cpu=not torch.cuda.is_available())


def is_main() -> bool:
    """Whether this process writes the files and talks."""
    return bool(state().is_main_process)


def main_first(work: Callable[[], T]) -> T:
    """Run `work` in the main process, then in the others, which find what it left in the run folder."""
    with state().main_process_first():
        return work()


def wait() -> None:
    """Let every process come here before any goes on."""
    state().wait_for_everyone()
