"""The findings of `vitcompress doctor`."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from act import __version__
from act.run.large_pages import why_not

NEEDED = (
    "torch",
    "torchvision",
    "timm",
    "hydra-core",
    "omegaconf",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "accelerate",
    "safetensors",
    "rich",
)
EXTRAS = {
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "optuna": "search",
    "matplotlib": "report",
    "datasets": "datasets",
    "webdataset": "datasets",
    "tensorboard": "dev",
}
_MODULES = {"hydra-core": "hydra"}
# Instruction sets that decide how fast integer kernels are, as Linux names them.
_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm", "sve")
_INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "asimddp")


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `state`: ok, missing (not needed), no (not on this machine) or BROKEN (needed)."""

    name: str
    state: str
    detail: str


def diagnose() -> list[Finding]:
    """All findings, in the order in which they matter."""
    found = [Finding("vitcompress", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")]
    found += [_package(name) for name in NEEDED]
    found += [_extra(name, extra) for name, extra in EXTRAS.items()]
    found += [cpu(), _pages(), _gpu()]
    found += _backends()
    found.append(_refbench())
    return found


def _package(name: str) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(name, "BROKEN", f"not installed; pip install {name}")
    try:
        importlib.import_module(_MODULES.get(name, name))
    except Exception as error:  # a broken install can raise anything at all
        return Finding(name, "BROKEN", import_failure(name, found, error, _version_of))
    return Finding(name, "ok", found)


def import_failure(name: str, found: str, error: Exception, version_of: Callable[[str], str]) -> str:
    """Why an installed package cannot be imported, and how to mend it."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if (
        "torchvision::" in text
        or "libtorch" in text
        or (name in ("timm", "torchvision") and "undefined symbol" in text)
    ):
        torch, torchvision = version_of("torch"), version_of("torchvision")
        index = torch.partition("+")[2]
        source = f" --index-url https://download.pytorch.org/whl/{index}" if index else ""
        return (
            f"{found} cannot be imported: torch {torch} and torchvision {torchvision} are not from the same place; "
            f"mend it with: pip install --force-reinstall torch torchvision{source}"
        )
    return f"{found} cannot be imported: {text}; mend it with: pip install --force-reinstall {name}"


def _version_of(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(none)"


def _extra(name: str, extra: str) -> Finding:
    found = _version_of(name)
    if found == "(none)":
        return Finding(name, "missing", f"not needed; pip install 'vitcompress[{extra}]'")
    return Finding(name, "ok", found)


def cpu(cpuinfo: str | None = None) -> Finding:
    """Processor, cores, memory and the instruction sets for integers. `cpuinfo` is the text of /proc/cpuinfo."""
    if cpuinfo is None:
        path = Path("/proc/cpuinfo")
        cpuinfo = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    known = [flag for flag in _CPU_FLAGS if flag in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    kind = fields.get("model name") or platform.processor() or platform.machine()
    int8 = "" if any(flag in flags for flag in _INT8_FLAGS) else "; no int8 dot product: int8 files gain little speed"
    flag_text = f"; {' '.join(known)}{int8}" if flags else "; instruction sets unknown here"
    return Finding("processor", "ok", f"{kind}, {cores} cores{flag_text}")


def _pages() -> Finding:
    reason = why_not()
    return Finding("large pages", "no" if reason else "ok", reason or "memory of a training in pages of 2 MiB")


def _gpu() -> Finding:
    try:
        import torch

        if torch.cuda.is_available():
            names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
            return Finding("GPU", "ok", ", ".join(names))
        built = (
            f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a build without CUDA"
        )
        return Finding("GPU", "no", f"none usable; {built}; everything runs on the processor")
    except Exception as error:  # torch may be broken in any way; the doctor must still answer
        return Finding("GPU", "no", f"torch cannot say: {error}")


def _backends() -> list[Finding]:
    from act.backends import backends

    found = []
    for name, backend in backends().items():
        reason = backend.available()
        detail = "can run exported files here" if reason is None else reason
        caution = getattr(backend, "caution", "")
        detail = f"{detail}; {caution}" if caution else detail
        found.append(Finding(f"backend {name}", "ok" if reason is None else "no", detail))
    return found


def _refbench() -> Finding:
    folder = os.environ.get("VITCOMPRESS_REFBENCH")
    if not folder:
        return Finding(
            "benchmarks", "missing", "not needed; VITCOMPRESS_REFBENCH names their folder for tests that use them"
        )
    state = "ok" if Path(folder).is_dir() else "missing"
    return Finding("benchmarks", state, folder if state == "ok" else f"VITCOMPRESS_REFBENCH: {folder}: no such folder")
