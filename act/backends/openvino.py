"""OpenVINO on the CPU (extra `openvino`); it reads the same ONNX file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy.typing as npt

from act.backends.base import Images
from act.errors import InputError


class OpenVinoSession:
    """A compiled model with one input and logits as its first output."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._output = compiled.output(0)

    def run(self, images: Images) -> npt.NDArray[Any]:
        """Logits [B, classes] of `images`, float32 [B, C, H, W]."""
        result: npt.NDArray[Any] = self._request.infer([images])[self._output].copy()
        return result


class OpenVino:
    """ONNX or OpenVINO IR files on the CPU."""

    name = "openvino"

    def available(self) -> str | None:
        """None, or that openvino is not installed."""
        if importlib.util.find_spec("openvino") is None:
            return "openvino is not installed; pip install 'vitcompress[openvino]'"
        return None

    def load(self, path: str | Path, threads: int = 0) -> OpenVinoSession:
        """Compile `path` for latency with `threads` threads (0: all cores); computes in float32 outside int8."""
        reason = self.available()
        if reason is not None:
            raise InputError(f"backend: openvino: cannot run here: {reason}")
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file")
        import openvino

        # bfloat16, its default on CPUs that have it, would make the result differ from the torch model's.
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        try:
            return OpenVinoSession(openvino.Core().compile_model(str(path), "CPU", config))
        except RuntimeError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise InputError(f"{path}: OpenVINO cannot open it: {(lines or ['no reason given'])[-1][:300]}") from error
