"""ONNX Runtime on the CPU: the default backend, with which every run opens and scores the file it ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from act.backends.base import Images
from act.backends.onnx_guard import check_external_data
from act.errors import InputError

_ERRORS_ONLY = 3


class OnnxSession:
    """An ONNX file with one input and logits as its first output."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name
        self._output = session.get_outputs()[0].name

    def run(self, images: Images) -> npt.NDArray[Any]:
        """Logits [B, classes] of `images`, float32 [B, C, H, W]."""
        result: npt.NDArray[Any] = self._session.run([self._output], {self._input: images})[0]
        return result


class OnnxRuntime:
    """ONNX files on the CPU."""

    name = "onnxruntime"

    def available(self) -> str | None:
        """None, or why onnxruntime cannot be imported."""
        try:
            import onnxruntime  # noqa: F401
        except ImportError as error:
            return f"{error}; pip install onnxruntime"
        return None

    def load(self, path: str | Path, threads: int = 0) -> OnnxSession:
        """Open `path` with `threads` intra-op threads (0: all cores)."""
        return OnnxSession(open_session(path, threads))


def open_session(
    path: str | Path,
    threads: int = 0,
    optimized: str | Path | None = None,
    optimize: bool = True,
    profile: str | Path | None = None,
) -> Any:
    """An onnxruntime.InferenceSession on the CPU.

    `optimized`: write the optimised graph there, without the layout changes for this CPU, which rename nodes.
    `optimize=False` runs the graph as it stands. `profile`: record every operator's time in a file that begins so.
    """
    import onnxruntime

    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    check_external_data(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads
    # Threads that go on spinning after a call would slow down whatever is timed in turn with this session.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    levels = onnxruntime.GraphOptimizationLevel
    if not optimize:
        options.graph_optimization_level = levels.ORT_DISABLE_ALL
    if optimized is not None:
        options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class; all of them mean the file cannot be run
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: ONNX Runtime cannot open it: {first[:300]}") from error
