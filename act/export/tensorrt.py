"""The TensorRT form of an exported file: FP16 body and scales, Q/DQ where TensorRT wants them, and its commands.

TensorRT 11 is always strongly typed: the types in the file are those of the engine. Written from the main ONNX file,
so that both hold the same integer weights. Nothing here needs TensorRT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from act.errors import ExportError
from act.export.half import to_half
from act.export.onnx_graph import Graph
from act.export.placement import place
from act.run.atomic import replacing, write_text
from act.verify.onnx_file import OnnxFile
from act.verify.tensorrt import ERROR, SPARSE, Finding, lint

COMMANDS = "model.tensorrt.txt"
NOT_RUN = "written by TensorRT's documented rules; not run on TensorRT here"


@dataclass(frozen=True)
class Conversion:
    """What was written: products by their arithmetic, remarks on what differs from the main file, lint findings."""

    integer_products: int
    float_products: int
    remarks: list[str]
    findings: list[Finding]


def to_tensorrt(model: onnx.ModelProto, sparse: Mapping[str, str] | None = None) -> tuple[onnx.ModelProto, list[str]]:
    """A copy of an exported float32 Q/DQ model in TensorRT's form, and remarks; `sparse`: patterns by layer."""
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    remarks = place(converted)
    to_half(converted)
    kept = [prop for prop in converted.metadata_props if prop.key != SPARSE]
    del converted.metadata_props[:]
    converted.metadata_props.extend(kept)
    if sparse:
        converted.metadata_props.add(key=SPARSE, value=json.dumps(dict(sparse), sort_keys=True))
    return converted, remarks


def export_tensorrt(source: str | Path, target: str | Path, sparse: Mapping[str, str] | None = None) -> Conversion:
    """Write the TensorRT form of the ONNX file `source` to `target`. ExportError if it breaks a rule of TensorRT."""
    model, remarks = to_tensorrt(OnnxFile(source).model, sparse)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker and shape inference raise types of their own
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"{target}: cannot be converted to FP16: {reason}") from error
    with replacing(target) as temporary:
        onnx.save_model(model, str(temporary))
    file = OnnxFile(target)
    findings = lint(file, sparse)
    errors = [f"{item.node}: {item.text}" for item in findings if item.level == ERROR]
    if errors:
        raise ExportError(f"{target}: breaks rules of TensorRT: {'; '.join(errors[:5])}")
    graph = Graph(file.model)
    integer = [graph.integer(product) for product in graph.products()]
    return Conversion(sum(integer), len(integer) - sum(integer), remarks, findings)


def trtexec(file: str, input_size: Sequence[int], batches: Sequence[int], sparse: bool, version: int) -> str:
    """The trtexec command that builds and times an engine of `file` with TensorRT `version` (10 or 11).

    `batches` is (smallest, expected, largest); `input_size` [channels, height, width].
    """
    stem = file.removesuffix(".onnx")
    size = "x".join(map(str, input_size))
    names = ("min", "opt", "max")
    options = [f"--{name}Shapes=images:{batch}x{size}" for name, batch in zip(names, batches, strict=True)]
    typed = ["--stronglyTyped"] if version < 11 else []  # the only typing that 11 has
    options += [*typed, "--sparsity=enable"] if sparse else typed
    options += [
        f"--saveEngine={stem}.engine", f"--timingCacheFile={stem}.cache", "--profilingVerbosity=detailed",
        f"--exportLayerInfo={stem}.layers.json", f"--exportProfile={stem}.profile.json", "--separateProfileRun",
        "--noDataTransfers", "--useCudaGraph", "--useSpinWait",
    ]  # fmt: skip
    return " ".join(["trtexec", f"--onnx={file}", *options])


def write_commands(target: Path, commands: Mapping[str, str]) -> None:
    """The commands for both versions as a text file."""
    lines = [f"# {target.name}: {NOT_RUN}. Run in this folder on a machine with TensorRT:"]
    for version, command in commands.items():
        lines += ["", f"# TensorRT {version}", command]
    write_text(target, "\n".join(lines) + "\n")
