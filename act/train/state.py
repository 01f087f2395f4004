"""What a training needs to go on after a kill: tensors in safetensors, scalars in JSON, nothing pickled.

`folder/state.json` names the folder `step-XXXXXXXX` that holds the tensors. A new one is written in full before
state.json is replaced to point to it, and only then the old one is removed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from act.errors import InputError
from act.run.atomic import replacing, write_json
from act.train.rng import get_random, pack, set_random, unpack

_POINTER = "state.json"


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
    scalars: dict[str, Any] = {name: getattr(state, name) for name in _SCALARS}
    for name, module in state.parts.items():
        if name == "model" or (not finished and module.state_dict()):
            save_tensors(target / f"{name}.safetensors", module.state_dict())
    if not finished:
        tensors, plain = _flatten(state.optimizer.state_dict())
        save_tensors(target / "optimizer.safetensors", tensors)
        random_tensors, random_plain = pack(get_random())
        save_tensors(target / "random.safetensors", random_tensors)
        scalars |= {"optimizer": plain, "random": random_plain}
    write_json(folder / _POINTER, {"folder": target.name, "key": state.key, **scalars})
    _remove_old(folder, keep=target.name, best=None if finished else state.best_step)
    if finished:
        for leftover in target.iterdir():
            if leftover.name != "model.safetensors":
                leftover.unlink()
    return target


def load_state(state: TrainState, folder: Path, restore_random: bool = True) -> Path | None:
    """Fill `state` from `folder` and return where its tensors lie; None when nothing was saved there.

    Raises:
        InputError: the folder holds the state of a training with other settings or of another model.
    """
    pointer = folder / _POINTER
    if not pointer.is_file():
        return None
    saved = json.loads(pointer.read_text(encoding="utf-8"))
    _check_key(state.key, saved["key"], folder)
    source = folder / str(saved["folder"])
    for name in _SCALARS:
        setattr(state, name, saved[name])
    finished = state.stopped_by is not None
    for name, module in state.parts.items():
        if name == "model" or (not finished and module.state_dict()):
            load_module(module, source / f"{name}.safetensors")
    if not finished:
        _restore_optimizer(state.optimizer, load_file(source / "optimizer.safetensors"), saved["optimizer"])
        if restore_random:
            set_random(unpack(load_file(source / "random.safetensors"), saved["random"]))
    return source


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


def _flatten(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state dict as tensors by name, and the rest as JSON."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{name}"] = value
            else:
                scalars.setdefault(str(index), {})[name] = _plain(value, name)
    groups: list[dict[str, Any]] = []
    for group in state["param_groups"]:
        values = {name: value for name, value in group.items() if name != "params"}
        for name in [name for name, value in values.items() if isinstance(value, Tensor)]:
            tensors[f"group {len(groups)}/{name}"] = values.pop(name)
        groups.append({name: _plain(value, name) for name, value in values.items()})
    return tensors, {"state": scalars, "groups": groups}


def _plain(value: Any, name: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, name) for item in value]
    raise InputError(
        f"TrainConfig.optimizer: its state {name!r} is a {type(value).__name__}, which cannot be saved without "
        "pickling; choose another optimizer, e.g. adamw"
    )


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    current = optimizer.state_dict()
    for index, (group, saved) in enumerate(zip(current["param_groups"], plain["groups"], strict=True)):
        for name, value in saved.items():
            group[name] = tuple(value) if isinstance(value, list) else value
        prefix = f"group {index}/"
        group.update({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in plain["state"].items()}
    for key, tensor in tensors.items():
        index_text, name = key.split("/", 1)
        if index_text.isdigit():
            state.setdefault(int(index_text), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})


def _remove_old(folder: Path, keep: str, best: int | None) -> None:
    for old in folder.glob("step-*"):
        if old.name != keep:
            shutil.rmtree(old, ignore_errors=True)
    for old in folder.glob("best-*.safetensors"):
        if best is None or old != best_path(folder, best):
            old.unlink(missing_ok=True)
