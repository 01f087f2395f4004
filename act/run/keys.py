"""Content hashes: what a result depends on, so that resume and cache are one mechanism."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Fields that cannot change a stage's result: where files lie (their content is in the fingerprint), and speed.
_NO_EFFECT = {"train", "val", "calibration", "class_map", "workers", "limit_val"}

# The same of a TrainConfig: how often it is written down and saved, and what only goals and checks go by.
_TRAIN_NO_EFFECT = {"logging_iter", "save_iter", "trackers", "stages", "origin_metric", "origin_tolerance"}


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over every parameter and buffer: name, type, shape and bytes, in the order of names."""
    return tensors_hash(model.state_dict())


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over named tensors, in the order of names, whatever device they are on."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        # Viewed as bytes, so that types numpy does not know (bfloat16) hash as well.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def chain_key(*parts: Any) -> str:
    """SHA-256 of the parts as canonical JSON; dataclasses count by their fields and their class's name."""
    return hashlib.sha256(json.dumps([plain(part) for part in parts], sort_keys=True).encode()).hexdigest()


def plain(value: Any) -> Any:
    """`value` as JSON values: dataclasses become mappings, tuples lists, anything else that is unknown its text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"": type(value).__name__} | {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def data_part(config: Any) -> dict[str, Any]:
    """What of the data section a stage depends on besides the images themselves (batch size, augmentation, ...)."""
    return {key: value for key, value in plain(config).items() if key not in _NO_EFFECT}


def train_part(config: Any) -> dict[str, Any]:
    """What of a TrainConfig the weights depend on that a training ends with."""
    # What is never evaluated while training decides neither which weights are best nor when to stop.
    free = _TRAIN_NO_EFFECT if config.eval_iter is not None else {*_TRAIN_NO_EFFECT, "metric"}
    return {key: value for key, value in plain(config).items() if key not in free}
