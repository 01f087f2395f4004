"""TensorRT 10 and 11 on an NVIDIA GPU (extra `tensorrt`): builds engines from ONNX files and runs them.

Written against the documented Python API and tested with a stand-in for the module; it has not run on hardware yet.
Differences between the versions: 11 is always strongly typed, so the network flag of 10 is gone or ignored there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from act.backends.base import Images
from act.backends.tensorrt_inspector import EngineLayer, parse_layers
from act.errors import ExportError, InputError
from act.run.atomic import write_bytes

VERSIONS = (10, 11)
CAUTION = "written against TensorRT's documentation, not yet run on hardware"


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built. `batches`: smallest, expected and largest; `sparse`: allow 2:4 kernels; `workspace` in
    bytes and `level` 0 to 5 leave TensorRT's defaults when None; `timing_cache`: file to read and to update."""

    batches: tuple[int, int, int] = (1, 8, 32)
    sparse: bool = True
    workspace: int | None = None
    level: int | None = None
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Engine:
    """A built engine: its serialised `plan`, what the inspector says, and what the builder said of sparsity."""

    plan: bytes
    inspector: str
    version: str
    sparsity_log: tuple[str, ...] = field(default=())

    def layers(self, sparse_nodes: Sequence[str] = (), times: dict[str, float] | None = None) -> list[EngineLayer]:
        """The engine's layers; see `parse_layers`."""
        return parse_layers(self.inspector, sparse_nodes, times)


def import_tensorrt() -> Any:
    """The module; InputError if it is missing or of another version."""
    if importlib.util.find_spec("tensorrt") is None:
        raise InputError("tensorrt is not installed; pip install 'vitcompress[tensorrt]' on a machine with its GPU")
    import tensorrt

    if major(tensorrt) not in VERSIONS:
        raise InputError(f"TensorRT {tensorrt.__version__}; supported: {' and '.join(map(str, VERSIONS))}")
    return tensorrt


def major(trt: Any) -> int:
    """10 or 11."""
    return int(str(trt.__version__).split(".")[0])


def build_engine(path: str | Path, options: EngineOptions | None = None) -> Engine:
    """Build an engine from the ONNX file `path`. InputError if TensorRT cannot be used, ExportError if it refuses."""
    options = options or EngineOptions()
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    trt = import_tensorrt()
    lines: list[str] = []
    logger = _logger(trt, lines)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise ExportError(f"{path}: TensorRT cannot read it: {'; '.join(errors[:3]) or 'no reason given'}")
    config = _config(trt, builder, network, options)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(f"{path}: TensorRT cannot build an engine: {'; '.join(lines[-3:]) or 'no reason given'}")
    if options.timing_cache is not None:
        write_bytes(options.timing_cache, bytes(config.get_timing_cache().serialize()))
    data = bytes(plan)
    engine = trt.Runtime(logger).deserialize_cuda_engine(data)
    if engine is None:
        raise ExportError(f"{path}: TensorRT cannot open the engine it built: {'; '.join(lines[-3:])}")
    inspector = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    told = tuple(line for line in lines if "(Sparsity)" in line)
    return Engine(data, str(inspector), str(trt.__version__), told)


def _logger(trt: Any, lines: list[str]) -> Any:
    """A logger that keeps errors, and what the builder says of sparsity."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            serious = severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
            if serious or "(Sparsity)" in message:
                lines.append(message)

    return Logger()


def _network_flags(trt: Any) -> int:
    flags: Any = getattr(trt, "NetworkDefinitionCreationFlag", None)
    if major(trt) >= 11 or not hasattr(flags, "STRONGLY_TYPED"):
        return 0
    return 1 << int(flags.STRONGLY_TYPED)


def _config(trt: Any, builder: Any, network: Any, options: EngineOptions) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.sparse and hasattr(trt.BuilderFlag, "SPARSE_WEIGHTS"):
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.level is not None:
        config.builder_optimization_level = options.level
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shapes = [tuple(batch if size < 0 else size for size in tensor.shape) for batch in options.batches]
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    if options.timing_cache is not None:
        known = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), False)
    return config


class TensorRtSession:
    """An engine with one float32 input and float32 logits, run through torch's memory on `device`."""

    def __init__(self, trt: Any, plan: bytes, device: str = "cuda") -> None:
        self._trt, self._device, self._lines = trt, device, list[str]()
        self._runtime = trt.Runtime(_logger(trt, self._lines))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise InputError(f"TensorRT cannot open the engine: {'; '.join(self._lines[-3:]) or 'no reason given'}")
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._input, self._output = inputs[0], next(name for name in names if name not in inputs)
        for name in (self._input, self._output):
            if self._engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
                raise InputError(
                    f"engine: {name} is not float32; export the file with vitcompress export --to tensorrt"
                )

    def run(self, images: Images) -> npt.NDArray[Any]:
        """Logits [B, classes] of `images`, float32 [B, C, H, W]."""
        import torch

        x = torch.from_numpy(np.ascontiguousarray(images)).to(self._device)
        if not self._context.set_input_shape(self._input, tuple(x.shape)):
            raise InputError(f"engine: cannot take images of {list(x.shape)}; build it for such batches")
        shape = tuple(self._context.get_tensor_shape(self._output))
        y = torch.empty(shape, dtype=torch.float32, device=self._device)
        self._context.set_tensor_address(self._input, x.data_ptr())
        self._context.set_tensor_address(self._output, y.data_ptr())
        stream = torch.cuda.current_stream() if x.is_cuda else None
        if not self._context.execute_async_v3(stream.cuda_stream if stream is not None else 0):
            raise ExportError(f"engine: the run failed: {'; '.join(self._lines[-3:]) or 'no reason given'}")
        if stream is not None:
            stream.synchronize()
        result: npt.NDArray[Any] = y.numpy(force=True)
        return result

    def layer_times(self, images: Images, runs: int = 20) -> dict[str, float]:
        """Median milliseconds per layer over `runs` runs after one to warm up, by the engine's own profiler."""
        times: dict[str, list[float]] = {}

        class Profiler(self._trt.IProfiler):  # type: ignore[misc, name-defined]
            def __init__(self, base: Any) -> None:
                base.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times.setdefault(layer_name, []).append(ms)

        self.run(images)
        profiler = Profiler(self._trt.IProfiler)
        self._context.profiler = profiler
        for _ in range(runs):
            self.run(images)
        return {name: float(np.median(values)) for name, values in times.items()}


class TensorRt:
    """ONNX files, built into an engine first, or engines (`.engine`, `.plan`) on an NVIDIA GPU."""

    name = "tensorrt"
    caution = CAUTION

    def available(self) -> str | None:
        """None, or that TensorRT or a GPU is missing."""
        try:
            import_tensorrt()
        except InputError as error:
            return str(error)
        except ImportError as error:  # its libraries are separate packages
            return f"tensorrt cannot be imported: {error}"
        import torch

        return None if torch.cuda.is_available() else "tensorrt is installed, but torch finds no NVIDIA GPU"

    def load(self, path: str | Path, threads: int = 0) -> TensorRtSession:
        """Build or open `path`; `threads` means nothing on a GPU."""
        trt = import_tensorrt()
        if Path(path).suffix in (".engine", ".plan"):
            if not Path(path).is_file():
                raise InputError(f"{path}: no such file")
            return TensorRtSession(trt, Path(path).read_bytes())
        return TensorRtSession(trt, build_engine(path).plan)
