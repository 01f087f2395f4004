"""Backends: what they say about themselves, bad files, and that they agree."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from export_support import images, standard_artifact

from act.backends import backends, get_backend
from act.backends.census import census
from act.backends.signal_stack import _Stack
from act.errors import InputError


def test_known_backends_say_whether_they_can_run() -> None:
    assert list(backends()) == ["onnxruntime", "openvino", "tensorrt"]
    for name, backend in backends().items():
        assert backend.name == name
        reason = backend.available()
        assert reason is None or "pip install" in reason
    assert backends()["onnxruntime"].available() is None


def test_unknown_backend_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean onnxruntime"):
        get_backend("onnx_runtime")


def test_unavailable_backend_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'vitcompress\[openvino\]'"):
        get_backend("openvino")
    with pytest.raises(InputError, match="cannot run here"):
        backends()["openvino"].load("model.onnx")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_bad_files(name: str, tmp_path: Path) -> None:
    backend = backends()[name]
    if backend.available() is not None:
        pytest.skip(str(backend.available()))
    with pytest.raises(InputError, match="no such file"):
        backend.load(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(InputError, match="not a readable ONNX file"):
        backend.load(tmp_path / "bad.onnx")


@pytest.mark.parametrize("threads", [0, 1])
def test_runtimes_agree(threads: int) -> None:
    path = standard_artifact()[0] / "model.onnx"
    batch = images(16).numpy()
    ours = get_backend("onnxruntime").load(path, threads).run(batch)
    assert ours.shape == (16, 10) and ours.dtype == np.float32
    if backends()["openvino"].available() is not None:
        pytest.skip("openvino is not installed")
    other = get_backend("openvino").load(path, threads).run(batch)
    assert np.linalg.norm(ours - other) < 0.1 * np.linalg.norm(ours)


def test_models_freed_in_the_order_they_were_made_leave_a_usable_signal_stack() -> None:
    if backends()["openvino"].available() is not None:
        pytest.skip("openvino is not installed")
    before = signal_stack()
    path = standard_artifact()[0] / "model.onnx"
    sessions = [get_backend("openvino").load(path, 1) for _ in range(3)]
    assert signal_stack() == before
    while sessions:
        sessions.pop(0)
    assert signal_stack()[0] in (before[0], None)


def signal_stack() -> tuple[int | None, int, int]:
    stack = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack.address, stack.flags, stack.size


def test_census_counts_and_names_products() -> None:
    counted = census(standard_artifact()[0] / "model.onnx")
    assert counted.integer == len(counted.integer_nodes) == 9
    assert counted.float == len(counted.float_nodes) == 5  # patch embedding, two products in each attention
    assert counted.operators["MatMulIntegerToFloat"] == 9


def test_census_of_a_bad_file(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"x")
    with pytest.raises(InputError, match="not a readable ONNX file"):
        census(tmp_path / "bad.onnx")
