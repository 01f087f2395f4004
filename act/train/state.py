"""What a training needs to go on after a kill: tensors in safetensors, scalars in JSON, nothing pickled.

A checkpoint is a folder `step-XXXXXXXX` of tensors and a record, state.json, that is written last and has the SHA-256
of each of them. The last two are kept: where the newer turns out torn or altered, training goes on from the older.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from act.errors import InputError
from act.run.atomic import replacing
from act.run.sealed import Damaged, read_sealed, write_sealed
from act.train.optimizer_state import flatten, restore
from act.train.rng import get_random, pack, set_random, unpack

_RECORD = "state.json"
_KEPT = 2  # checkpoints


@dataclass
class TrainState:
    """The moving parts of a training. `parts` are the modules whose tensors are kept, by name."""

    parts: dict[str, nn.Module]  # model, ema and extra (the objectives' parameters)
    optimizer: torch.optim.Optimizer
    key: dict[str, Any]  # what must be equal for a saved state to be continued
    step: int = 0
    seconds: float = 0.0
    images: int = 0
    recent: list[dict[str, float]] = field(default_factory=list)  # loss terms of the last steps, over all processes
    best_metric: float | None = None
    best_step: int | None = None  # whose weights lie in best-XXXXXXXX.safetensors
    stopped_by: str | None = None  # None while the training goes on
    laps: dict[str, float] = field(default_factory=dict)  # see act.train.laps


_SCALARS = ("step", "seconds", "images", "recent", "best_metric", "best_step", "stopped_by")


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name to `path` atomically; tensors that share memory are written once each."""
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        if value.numel() and value.data_ptr() in seen:
            value = value.clone()
        seen.add(value.data_ptr())
        plain[name] = value
    with replacing(path) as temporary:
        save_file(plain, temporary)


def save_state(state: TrainState, folder: Path) -> Path:
    """Save everything of `state` and return the folder that holds it. A finished training keeps only its model."""
    target = folder / f"step-{state.step:08d}"
    finished = state.stopped_by is not None
    record: dict[str, Any] = {"key": state.key, "laps": state.laps}
    record |= {name: getattr(state, name) for name in _SCALARS}
    tensors: dict[str, Mapping[str, Tensor]] = {
        name: module.state_dict()
        for name, module in state.parts.items()
        if name == "model" or (not finished and module.state_dict())
    }
    if not finished:
        tensors["optimizer"], record["optimizer"] = flatten(state.optimizer.state_dict())
        tensors["random"], record["random"] = pack(get_random())
    for name, values in tensors.items():
        save_tensors(target / f"{name}.safetensors", values)
    files = [f"{name}.safetensors" for name in tensors]
    if not finished and state.best_step is not None and best_path(folder, state.best_step).is_file():
        files.append(f"../{best_path(folder, state.best_step).name}")
    write_sealed(target / _RECORD, record, files)
    _remove_old(folder, state)
    return target


def load_state(
    state: TrainState, folder: Path, warn: Callable[[str], None], restore_random: bool = True
) -> Path | None:
    """Fill `state` from the last good checkpoint in `folder` and return where it lies; None when there is none.

    `warn` is told of every newer one that is not whole.

    Raises:
        InputError: the folder holds the state of a training with other settings or of another model.
    """
    checkpoints = _checkpoints(folder)
    for source in reversed(checkpoints):
        try:
            saved = read_sealed(source / _RECORD)
        except Damaged as damage:
            warn(f"{damage}; this checkpoint is passed over")
            continue
        if saved is None:
            warn(f"{source}: was not written to its end; this checkpoint is passed over")
            continue
        _check_key(state.key, saved["key"], folder)
        _fill(state, saved, source, restore_random)
        return source
    if checkpoints:
        warn(f"{folder}: no checkpoint is whole; training starts from its beginning")
    return None


def _fill(state: TrainState, saved: Mapping[str, Any], source: Path, restore_random: bool) -> None:
    for name in _SCALARS:
        setattr(state, name, saved[name])
    state.laps.update(saved.get("laps", {}))
    finished = state.stopped_by is not None
    for name, module in state.parts.items():
        if name == "model" or (not finished and module.state_dict()):
            load_module(module, source / f"{name}.safetensors")
    if not finished:
        restore(state.optimizer, load_file(source / "optimizer.safetensors"), saved["optimizer"])
        if restore_random:
            set_random(unpack(load_file(source / "random.safetensors"), saved["random"]))


def load_module(module: nn.Module, path: Path) -> None:
    """Load tensors written by `save_tensors` into `module`, every one of them."""
    try:
        module.load_state_dict(load_file(path), strict=True)
    except (RuntimeError, OSError) as error:
        first = str(error).strip().splitlines()[:2]
        raise InputError(f"{path}: does not fit the model ({' '.join(first)}); use a fresh --dir") from error


def best_path(folder: Path, step: int) -> Path:
    """The file of the best weights, found at `step`."""
    return folder / f"best-{step:08d}.safetensors"


def _check_key(wanted: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    wanted = json.loads(json.dumps(wanted))
    changed = [
        f"{name} was {found.get(name)!r} and is {wanted.get(name)!r}"
        for name in sorted({*wanted, *found})
        if wanted.get(name) != found.get(name)
    ]
    if changed:
        raise InputError(
            f"{folder}: holds a training with other settings ({'; '.join(changed[:4])}); "
            "put the settings back, use a fresh --dir, or delete the folder"
        )


def _checkpoints(folder: Path) -> list[Path]:
    """The folders of checkpoints, whole or not, oldest first."""
    return sorted(folder.glob("step-*"))


def _remove_old(folder: Path, state: TrainState) -> None:
    """Keep the checkpoint just written and the whole one before it, and the best weights that they speak of."""
    newest = f"step-{state.step:08d}"
    # One of a later step was damaged, or training would not have come by here again.
    whole = [path for path in _checkpoints(folder) if path.name <= newest and (path / _RECORD).is_file()]
    for path in set(_checkpoints(folder)).difference(whole[-_KEPT:]):
        shutil.rmtree(path, ignore_errors=True)
    needed = {_best_of(folder, path) for path in whole[-_KEPT:]}
    for path in set(folder.glob("best-*.safetensors")) - needed:
        path.unlink(missing_ok=True)


def _best_of(folder: Path, checkpoint: Path) -> Path | None:
    """The file of best weights that a checkpoint goes with; a finished training has them as its model."""
    try:
        saved = json.loads((checkpoint / _RECORD).read_text(encoding="utf-8"))
        return best_path(folder, saved["best_step"]) if saved["stopped_by"] is None else None
    except (ValueError, TypeError, KeyError):  # damaged: nobody will go on from there
        return None
