"""A stand-in for the `tensorrt` module of version 10 and 11: it records calls and writes what the inspector would."""

from __future__ import annotations

import ctypes
import importlib.machinery
import json
import types
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

SPARSE_TACTIC = "sm80_xmma_gemm_sparse_int8int8_int8_tn_n_tilesize128x64x128_stage3"
DENSE_TACTIC = "sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize128x128x64_stage4"


def layers_json(version: int) -> str:
    """What the inspector writes: a sparse layer, one that could be, a fused attention, a reformat, an opaque block."""

    def tensor(name: str, kind: str) -> dict[str, Any]:
        kinds = {"Format/Datatype": f"{kind} NC/32HW32"} if version == 10 else {"Format": "NC/32HW32", "DataType": kind}
        return {"Name": name, "Location": "Device", "Dimensions": [1, 197, 384], **kinds}

    def layer(name: str, kind: str, tactic: str, sparse: int, data: str, onnx_names: list[str]) -> dict[str, Any]:
        return {
            "Name": name, "LayerType": kind, "Inputs": [tensor("in", data)], "Outputs": [tensor("out", "Half")],
            "ParameterType": "Convolution", "HasSparseWeights": sparse, "TacticName": tactic, "StreamId": 0,
            "Metadata": "\x1e".join(f"[ONNX Layer: {item}]" for item in onnx_names),
        }  # fmt: skip

    found = [
        layer("fc1", "CaskGemmConvolution", SPARSE_TACTIC, 1, "Int8", ["blocks.0.mlp.fc1/MatMul", "fc1/Add"]),
        layer("fc2", "CaskGemmConvolution", DENSE_TACTIC, 1, "Int8", ["blocks.0.mlp.fc2/MatMul"]),
        layer("mha", "kgen", "_gemm_mha_v2_0x1234", 0, "Half", ["scores", "softmax"]),
        layer("reformat", "NoOp", "", 1, "Int8", []),
        layer("{ForeignNode[a...b]}", "Myelin", "", 0, "Half", ["blocks.0.attn.qkv/MatMul"]),
    ]
    return json.dumps({"Layers": found, "Bindings" if version == 10 else "I/O Tensors": ["images", "logits"]})


class Recorder:
    """Records every call of the module below."""

    calls: ClassVar[list[tuple[Any, ...]]] = []


def record(name: str, *values: Any) -> None:
    Recorder.calls.append((name, *values))


class ILogger:
    class Severity:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class IProfiler:
    pass


class Flags:
    STRONGLY_TYPED = 1


class BuilderFlag:
    SPARSE_WEIGHTS = "SPARSE_WEIGHTS"


class Tensor:
    name, shape = "images", (-1, 3, 32, 32)


class Network:
    num_inputs = 1

    def get_input(self, index: int) -> Tensor:
        return Tensor()


class Cache:
    def serialize(self) -> memoryview:
        return memoryview(b"timings")


class Config:
    def __setattr__(self, name: str, value: Any) -> None:
        record(name, value)

    def __getattr__(self, name: str) -> Any:
        def call(*values: Any) -> Any:
            record(name, *values)
            return Cache() if "timing_cache" in name and not name.startswith("set") else None

        return call


class Profile:
    def set_shape(self, *values: Any) -> None:
        record("set_shape", *values)


class Builder:
    refuses = False

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> Network:
        record("create_network", flags)
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        record("build_serialized_network")
        self.logger.log(ILogger.Severity.INFO, "(Sparsity) Layers eligible for sparse math: fc1, fc2")
        self.logger.log(ILogger.Severity.INFO, "something else")
        if self.refuses:
            self.logger.log(ILogger.Severity.ERROR, "no implementation for fc1")
        return None if self.refuses else b"plan"


class OnnxParser:
    refuses = False
    num_errors = 1

    def __init__(self, network: Network, logger: Any) -> None:
        pass

    def parse_from_file(self, path: str) -> bool:
        record("parse_from_file", Path(path).name)
        return not self.refuses

    def get_error(self, index: int) -> str:
        return f"error {index}"


class Context:
    """Copies two values of each image into the logits, through the addresses it was given."""

    largest = 8
    profiler: Any = None

    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape[0] <= self.largest

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0], 2)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        size = int(np.prod(self.shape[1:]))
        for row in range(self.shape[0]):
            ctypes.memmove(self.addresses["logits"] + 8 * row, self.addresses["images"] + 4 * size * row, 8)
        if self.profiler is not None:
            for name in ("fc1", "fc2"):
                self.profiler.report_layer_time(name, 0.25)
        return True


class EngineStandIn:
    num_io_tensors = 2
    output_type = "FLOAT"

    def __init__(self, version: int) -> None:
        self.version = version

    def create_engine_inspector(self) -> Any:
        return types.SimpleNamespace(get_engine_information=lambda kind: layers_json(self.version))

    def create_execution_context(self) -> Context:
        return Context()

    def get_tensor_name(self, index: int) -> str:
        return ("logits", "images")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name == "images" else "OUTPUT"

    def get_tensor_dtype(self, name: str) -> str:
        return self.output_type if name == "logits" else "FLOAT"


def stand_in(version: int) -> types.ModuleType:
    module = types.ModuleType("tensorrt")
    module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, plan: bytes) -> EngineStandIn | None:
            record("deserialize_cuda_engine", plan)
            return EngineStandIn(version) if plan == b"plan" else None

    found: dict[str, Any] = {
        "__version__": f"{version}.1.0", "ILogger": ILogger, "IProfiler": IProfiler, "Builder": Builder,
        "OnnxParser": OnnxParser, "Runtime": Runtime, "BuilderFlag": BuilderFlag,
        "NetworkDefinitionCreationFlag": Flags,
        "ProfilingVerbosity": types.SimpleNamespace(DETAILED="DETAILED"),
        "MemoryPoolType": types.SimpleNamespace(WORKSPACE="WORKSPACE"),
        "LayerInformationFormat": types.SimpleNamespace(JSON="JSON"),
        "TensorIOMode": types.SimpleNamespace(INPUT="INPUT"), "DataType": types.SimpleNamespace(FLOAT="FLOAT"),
    }  # fmt: skip
    for name, value in found.items():
        setattr(module, name, value)
    return module
