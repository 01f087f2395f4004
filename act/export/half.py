"""From a float32 graph to one whose body and scales are FP16; integer weights stay, input and output stay float32."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from act.errors import ExportError
from act.export.onnx_graph import QDQ, Array, Graph, attribute

_T = onnx.TensorProto
_LARGEST = float(np.finfo(np.float16).max)
NORMAL = float(np.finfo(np.float16).smallest_normal)
_SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
# Inputs that the standard wants in float32 whatever the type of the data.
_FLOAT32_INPUTS = {("Resize", 1), ("Resize", 2)}


def to_half(model: onnx.ModelProto) -> None:
    """Convert `model` in place. ExportError for a value that FP16 cannot hold or a graph that cannot be converted.

    A scale below FP16's normal range has few digits left, so the integers of that channel are computed anew for the
    scale that is stored; zeros stay zeros.
    """
    graph = Graph(model)
    for node in graph.nodes:
        if any(item.HasField("g") for item in node.attribute):
            raise ExportError(f"{node.name}: {node.op_type} has graphs of its own, which cannot be converted to FP16")
    kept = {name for node in graph.nodes for index, name in enumerate(node.input)
            if (node.op_type, index) in _FLOAT32_INPUTS}  # fmt: skip
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    _half_scales(graph, tensors)
    for name, tensor in tensors.items():
        if tensor.data_type == _T.FLOAT and name not in kept:
            tensor.CopyFrom(numpy_helper.from_array(half(numpy_helper.to_array(tensor), name), name))
    for node in graph.nodes:
        _half_attributes(node)
    for value in model.graph.value_info:
        if value.type.tensor_type.elem_type == _T.FLOAT:
            value.type.tensor_type.elem_type = _T.FLOAT16
    _cast_interface(model.graph)


def half(array: Array, name: str) -> Array:
    """`array` in FP16. Values below its range (masks that stand for minus infinity) become its lowest one."""
    finite = array[np.isfinite(array)]
    if finite.size and float(finite.max()) > _LARGEST:
        raise ExportError(f"{name}: {float(finite.max()):g} is beyond FP16's largest value, {_LARGEST:g}")
    return np.where(np.isneginf(array), array, np.maximum(array, -_LARGEST)).astype(np.float16)


def half_scale(scale: Array, name: str) -> Array:
    """A scale in FP16: the nearest value, or below the normal range the next larger one, so that no integer that is
    computed anew for it leaves the range."""
    nearest = half(scale, name)
    larger = np.where(nearest < scale, np.nextafter(nearest, np.float16(np.inf)), nearest)
    return np.where(scale < NORMAL, larger, nearest).astype(np.float16)


def _half_scales(graph: Graph, tensors: dict[str, onnx.TensorProto]) -> None:
    done: dict[str, Array] = {}
    for node in graph.nodes:
        if node.op_type not in QDQ or node.input[1] not in tensors:
            continue
        name = node.input[1]
        scale = graph.constant(name)
        if scale is None or scale.dtype != np.float32:
            continue
        codes = tensors.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if codes is None and float(scale.min()) < _SMALLEST:
            raise ExportError(f"{name}: {float(scale.min()):g} is too small a scale for FP16; calibrate anew")
        stored = half_scale(scale, name)
        if codes is not None and codes.data_type == _T.INT8 and (scale < NORMAL).any():
            _requantize(codes, scale, stored, attribute(node, "axis", 1))
        done[name] = stored
    for name, stored in done.items():
        tensors[name].CopyFrom(numpy_helper.from_array(stored, name))


def _requantize(codes: onnx.TensorProto, scale: Array, stored: Array, axis: int) -> None:
    array = numpy_helper.to_array(codes)
    ratio = np.where(scale < NORMAL, scale / stored.astype(np.float32), np.float32(1))
    shape = [-1 if index == axis else 1 for index in range(array.ndim)]
    ratio = ratio.reshape(shape) if ratio.size > 1 else ratio
    changed = np.clip(np.rint(array * ratio), -127, 127).astype(np.int8)
    codes.CopyFrom(numpy_helper.from_array(changed, codes.name))


def _half_attributes(node: onnx.NodeProto) -> None:
    """Constants, and operators that say the type of their output."""
    for item in node.attribute:
        if item.type == onnx.AttributeProto.TENSOR and item.t.data_type == _T.FLOAT:
            item.t.CopyFrom(numpy_helper.from_array(half(numpy_helper.to_array(item.t), node.name), item.t.name))
        elif item.name in ("to", "dtype") and item.i == _T.FLOAT:
            item.i = _T.FLOAT16
        elif node.op_type == "Constant" and item.name in ("value_float", "value_floats"):
            value = np.array(item.f if item.name == "value_float" else list(item.floats), np.float32)
            item.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(half(value, node.name))))


def _cast_interface(graph: onnx.GraphProto) -> None:
    """Float32 images in, float32 logits out, so that the file is used like the main one."""
    inputs = {value.name: f"{value.name}.half" for value in graph.input if _is_float(value)}
    outputs = {value.name: f"{value.name}.half" for value in graph.output if _is_float(value)}
    names = inputs | outputs
    for node in graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                field[index] = names.get(name, name)
    casts = [
        helper.make_node("Cast", [name], [new], name=f"{name}/Cast", to=_T.FLOAT16) for name, new in inputs.items()
    ]
    nodes = [*casts, *graph.node]
    nodes += [
        helper.make_node("Cast", [new], [name], name=f"{name}/Cast", to=_T.FLOAT) for name, new in outputs.items()
    ]
    kept = onnx.GraphProto()
    kept.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(kept.node)


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == _T.FLOAT)
