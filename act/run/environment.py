"""What a run ran on: versions and hardware, as written to environment.json."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import act

PACKAGES = (
    *("torch", "torchvision", "timm", "accelerate", "hydra-core", "omegaconf", "onnx", "onnxscript", "onnxruntime"),
    *("safetensors", "numpy", "openvino", "tensorrt"),
)
# What of `describe` decides the last digits of a result.
VERSIONS = ("vitcompress", "python", "packages", "cpu", "gpus", "torch_threads")
# The instruction sets that decide how fast integers and bf16 run.
CPU_FLAGS = (
    *("avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "neon"),
)


def describe() -> dict[str, Any]:
    """Versions of what computes, the CPU and its integer features, threads, memory and GPUs; plain JSON."""
    import psutil
    import torch

    model, flags = _cpu()
    return {
        "vitcompress": act.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "cpu": model,
        "cpu_features": [flag for flag in CPU_FLAGS if flag in flags],
        "cores": {"physical": psutil.cpu_count(logical=False), "usable": _usable_cores()},
        "torch_threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def machine_fingerprint(environment: Mapping[str, Any]) -> str:
    """16 hex digits of what decides a machine's speed, from what `describe` says; its name is no part of it."""
    parts = {key: environment.get(key) for key in ("cpu", "cpu_features", "cores", "gpus")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> tuple[str, set[str]]:
    """Name and feature flags from the kernel; outside Linux the name alone."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else []:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip().lower() in ("flags", "features"):
            flags = set(value.split())
            break
    return name, flags
