"""The accelerator of a training: device, processes and trackers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, broadcast

from act.context import Context
from act.errors import InputError
from act.recipe.schema import TrainConfig


def make_accelerator(cfg: TrainConfig, ctx: Context, folder: Path) -> Accelerator:
    """One process by itself, or one of those that `accelerate launch` or `torchrun` started.

    `batch_size` is that of all processes together: each gets its part of every batch.
    """
    cpu = ctx.device.type == "cpu"
    _forget_other_settings(cpu)
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision="no",  # the loop itself runs the forward pass under autocast, as TrainConfig.amp says
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        log_with=_installed_trackers(cfg.trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "trackers")),
    )
    if cfg.trackers:
        accelerator.init_trackers("vitcompress", config=_scalars(cfg))
    return accelerator


def close_trackers(accelerator: Accelerator) -> None:
    """Flush the trackers. Not `end_training`, which would also end the process group that later stages need."""
    for tracker in accelerator.trackers:
        tracker.finish()


def from_main(value: float, accelerator: Accelerator) -> float:
    """Process 0's `value`, in every process."""
    if accelerator.num_processes == 1:
        return value
    return float(broadcast(torch.tensor([value], dtype=torch.float64, device=accelerator.device)).item())


def any_process(number: int | None, accelerator: Accelerator) -> int:
    """The largest `number` that any process has, 0 for none; every process gets the same answer."""
    if accelerator.num_processes == 1:
        return number or 0
    own = torch.zeros(accelerator.num_processes, device=accelerator.device)
    own[accelerator.process_index] = number or 0
    return int(accelerator.reduce(own, reduction="sum").max().item())


def mean_over_processes(values: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """The mean of each value over the processes, which all call this with the same names."""
    if accelerator.num_processes == 1 or not values:
        return values
    own = torch.tensor(list(values.values()), dtype=torch.float64, device=accelerator.device)
    return dict(zip(values, accelerator.reduce(own, reduction="mean").tolist(), strict=True))


def _forget_other_settings(cpu: bool) -> None:
    """Accelerate's state is one per process; drop it when an earlier training left another device or precision."""
    shared: dict[str, Any] = AcceleratorState._shared_state
    if not shared:
        return
    other_device = cpu and shared["device"].type != "cpu"
    if other_device or shared.get("_mixed_precision", "no") != "no":
        AcceleratorState._reset_state(reset_partial_state=other_device)


def _installed_trackers(names: list[str]) -> list[str]:
    """The names, checked: accelerate would leave out one whose package is missing without a word."""
    here = [str(getattr(kind, "value", kind)) for kind in get_available_trackers()]
    problems = [
        f"TrainConfig.trackers: {name} is not installed (pip install {name}), or leave it out"
        for name in names
        if name not in here
    ]
    if problems:
        raise InputError(problems)
    return names


def _scalars(cfg: TrainConfig) -> dict[str, Any]:
    values = dataclasses.asdict(cfg)
    return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}
