"""TensorRT's rules for QuantizeLinear and DequantizeLinear, and for operators.

Sources: documentation of IQuantizeLayer and IDequantizeLayer (explicit quantisation is symmetric, scales > 0, scales
of the type of the data in a strongly typed network, one scale per tensor for activations), TensorRT 10 and 11.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from act.export.onnx_graph import QDQ, Graph, attribute
from act.verify.tensorrt_rules import ERROR, WARNING, Findings, Subject, label, rule, type_name

_T = onnx.TensorProto
_FLOATS = (_T.FLOAT, _T.FLOAT16, _T.BFLOAT16)
_CODES = (_T.INT8, _T.INT4, _T.FLOAT8E4M3FN)
_SAME_TYPE = ("MatMul", "Gemm", "Conv", "Add", "Sub", "Mul", "Div")
_UNSUPPORTED = ("QLinearMatMul", "QLinearConv", "MatMulInteger", "ConvInteger", "DynamicQuantizeLinear")


def _pairs(graph: Graph) -> Iterator[onnx.NodeProto]:
    return (node for node in graph.nodes if node.op_type in QDQ)


def _zero(node: onnx.NodeProto) -> str:
    return node.input[2] if len(node.input) > 2 else ""


@rule("zero-point", ERROR)
def zero_points(subject: Subject) -> Findings:
    """Zero points are missing or constant zeros."""
    for node in _pairs(subject.graph):
        zero = _zero(node)
        value = subject.graph.constant(zero) if zero else np.zeros(())
        if value is None:
            yield label(node), f"its zero point {zero} is computed; TensorRT allows constant zeros; write it as one"
        elif np.asarray(value, np.float32).any():
            found = f"{np.asarray(value, np.float32).min():g} to {np.asarray(value, np.float32).max():g}"
            yield label(node), f"zero points {found}; TensorRT allows 0 only; quantise symmetrically"


@rule("integer-type", ERROR)
def integer_types(subject: Subject) -> Findings:
    """Codes are int8, int4 or float8e4m3fn."""
    for node in _pairs(subject.graph):
        zero = _zero(node)
        found = subject.graph.types.get(zero) if zero else None
        if node.op_type == "DequantizeLinear":
            found = subject.graph.types.get(node.input[0], found)
        if found is not None and found not in _CODES:
            yield label(node), f"codes of type {type_name(found)}; TensorRT allows int8, int4 and float8e4m3fn"


@rule("scale", ERROR)
def scales(subject: Subject) -> Findings:
    """Scales are constant, finite and > 0."""
    for node in _pairs(subject.graph):
        scale = subject.graph.constant(node.input[1])
        if scale is None:
            yield label(node), f"its scale {node.input[1]} is computed; TensorRT needs a constant; write it as one"
            continue
        wide = scale.astype(np.float32)
        if not np.isfinite(wide).all() or not (wide > 0).all():
            yield label(node), f"scales from {wide.min():g} to {wide.max():g}; allowed: finite and > 0; recalibrate"


@rule("scale-type", ERROR)
def scale_types(subject: Subject) -> Findings:
    """A scale has the type of the data that is quantised, or that the dequantised data meets."""
    types = subject.graph.types
    for node in _pairs(subject.graph):
        scale = types.get(node.input[1])
        others = {node.input[0]} if node.op_type == "QuantizeLinear" else set()
        for reader, _ in subject.graph.consumers.get(node.output[0], []) if not others else []:
            others |= set(reader.input) - {node.output[0]} if reader.op_type in _SAME_TYPE else set()
        wrong = sorted({types[name] for name in others if types.get(name) in _FLOATS} - {scale})
        if wrong:
            yield (
                label(node),
                f"{type_name(scale)} scale for {type_name(wrong[0])} data; TensorRT is strongly typed and allows one "
                "type; store the scale in the type of the data",
            )


@rule("per-channel", ERROR)
def per_channel(subject: Subject) -> Findings:
    """Several scales only for constants, along the axis of the output channels."""
    graph = subject.graph
    for node in _pairs(graph):
        count = int(np.prod([size or 1 for size in graph.shapes.get(node.input[1], [])]))
        if count > 1 and not graph.is_constant(node.input[0]):
            yield label(node), f"{count} scales for an activation; TensorRT allows one per tensor; use a single scale"
    for weight in graph.weights():
        blocked = any(attribute(node, "block_size", 0) for node in weight.path)
        if weight.scale_axis not in (None, weight.n) and not blocked:
            yield (
                label(weight.product),
                f"{weight.name}: scales along axis {weight.scale_axis} as {weight.product.op_type} reads it; allowed: "
                f"{weight.n}, its output channels; quantise along that axis",
            )


@rule("opset", ERROR)
def opset(subject: Subject) -> Findings:
    """Opset 19 for scales other than float32, 21 for int4 and blocks of scales."""
    graph = subject.graph
    version = next((entry.version for entry in graph.model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    half = [node for node in _pairs(graph) if graph.types.get(node.input[1]) in (_T.FLOAT16, _T.BFLOAT16)]
    fine = [node for node in _pairs(graph) if attribute(node, "block_size", 0) or _INT4 & _codes(graph, node)]
    for needed, nodes, what in ((21, fine, "int4 or blockwise scales"), (19, half, "half-precision scales")):
        if nodes and version < needed:
            yield label(nodes[0]), f"{what} in opset {version}; allowed from opset {needed} on; export with that opset"
            return


_INT4 = {int(_T.INT4), int(_T.UINT4)}


def _codes(graph: Graph, node: onnx.NodeProto) -> set[int]:
    return {graph.types.get(name, 0) for name in (*node.input, *node.output)}


@rule("bias", ERROR)
def biases(subject: Subject) -> Findings:
    """No bias comes from integers."""
    graph = subject.graph
    for node in graph.nodes:
        for index, name in enumerate(node.input):
            is_bias = (node.op_type in ("Gemm", "Conv") and index == 2) or node.op_type == "Add"
            source, path = graph.trace(name)
            if is_bias and graph.constant(source) is not None and any(item.op_type in QDQ for item in path):
                yield label(node), f"its bias {source} is quantised; TensorRT adds it in float; store it as a float"


@rule("shared-pair", WARNING)
def shared_pairs(subject: Subject) -> Findings:
    """One Q/DQ pair after each normalisation, read by all that follows it."""
    graph = subject.graph
    for node in graph.nodes:
        if node.op_type not in ("LayerNormalization", "InstanceNormalization", "GroupNormalization"):
            continue
        pairs = [reader for reader, _ in graph.consumers.get(node.output[0], []) if reader.op_type == "QuantizeLinear"]
        if len(pairs) > 1:
            values = {float(np.asarray(graph.constant(pair.input[1]), np.float32).max()) for pair in pairs
                      if graph.constant(pair.input[1]) is not None}  # fmt: skip
            do = (
                "merge them (export --to tensorrt does)" if len(values) == 1 else "give them one scale, then merge them"
            )
            yield label(node), f"{len(pairs)} Q/DQ pairs read it; one shared pair is quantised once; {do}"


@rule("operator", ERROR)
def operators(subject: Subject) -> Findings:
    """Only operators that TensorRT's parser knows in an explicitly quantised network."""
    for node in subject.graph.nodes:
        if node.domain not in ("", "ai.onnx"):
            yield label(node), f"operator {node.domain}.{node.op_type}; allowed: the ONNX standard's own; export anew"
        elif node.op_type in _UNSUPPORTED:
            yield label(node), f"operator {node.op_type}; TensorRT does not read it; write a float operator with Q/DQ"
