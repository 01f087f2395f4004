"""An optimiser's state as named tensors and plain JSON, since nothing of a run is pickled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from act.errors import InputError


def flatten(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
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


def restore(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """Put back into `optimizer` what `flatten` took apart."""
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
