"""OpenVINO on the CPU (extra `openvino`); it reads the same ONNX file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy.typing as npt

from act.backends.base import Images
from act.backends.onnx_guard import check_external_data
from act.backends.signal_stack import kept_signal_stack
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

    def load(self, path: str | Path, threads: int = 0, precision: str = "f32") -> OpenVinoSession:
        """Compile `path` for latency with `threads` threads (0: all cores).

        `precision`, one of `precisions()`, is what is computed in outside int8.
        """
        return OpenVinoSession(compile_model(path, threads, precision))


def precisions() -> list[str]:
    """What this CPU computes in outside int8: f32, and bf16 or f16 where its instructions do that."""
    import openvino

    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ["f32", *(ours for theirs, ours in (("BF16", "bf16"), ("FP16", "f16")) if theirs in capabilities)]


def check_ir(path: Path) -> None:
    """InputError unless `path` is a file and, when it is called .xml, OpenVINO's IR with its weights beside it.

    OpenVINO itself tries every other format on what it does not know, each with messages of its own.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix != ".xml":
        return
    try:
        root = ElementTree.parse(path).getroot().tag
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path}: OpenVINO cannot open it: not XML: {error}") from error
    if root != "net":
        raise InputError(
            f"{path}: OpenVINO cannot open it: its root is <{root}>; allowed: <net>, as OpenVINO writes it"
        )
    if not path.with_suffix(".bin").is_file():
        raise InputError(f"{path}: its weights {path.with_suffix('.bin').name} are not beside it")


def compile_model(path: str | Path, threads: int = 0, precision: str = "f32", profile: bool = False) -> Any:
    """An openvino.CompiledModel on the CPU; with `profile` its requests record every operator's time."""
    reason = OpenVino().available()
    if reason is not None:
        raise InputError(f"backend: openvino: cannot run here: {reason}")
    if Path(path).suffix == ".onnx":
        check_external_data(path)
    check_ir(Path(path))
    import openvino

    # Unasked, it computes in bfloat16 on CPUs that have it, and the result would differ from the torch model's.
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    config["PERF_COUNT"] = profile
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    try:
        with kept_signal_stack():
            return openvino.Core().compile_model(str(path), "CPU", config)
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise InputError(f"{path}: OpenVINO cannot open it: {(lines or ['no reason given'])[-1][:300]}") from error
