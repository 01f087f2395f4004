"""Runtimes that execute exported files."""

from __future__ import annotations

import difflib

from act.backends.base import Backend, Session
from act.backends.onnxruntime import OnnxRuntime
from act.backends.openvino import OpenVino
from act.backends.tensorrt import TensorRt
from act.errors import InputError

__all__ = ["Backend", "Session", "backends", "get_backend"]


def backends() -> dict[str, Backend]:
    """Every backend by name, whether it can run here or not (`available` tells)."""
    found: tuple[Backend, ...] = (OnnxRuntime(), OpenVino(), TensorRt())
    return {backend.name: backend for backend in found}


def get_backend(name: str) -> Backend:
    """The backend called `name`, ready to run; InputError if there is none or it cannot run here."""
    known = backends()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise InputError(f"backend: {name}: unknown{hint}; known: {', '.join(known)}")
    reason = known[name].available()
    if reason is not None:
        raise InputError(f"backend: {name}: cannot run here: {reason}")
    return known[name]
