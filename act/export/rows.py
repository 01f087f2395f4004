"""Operators that treat tokens alike: the tokens of the result follow from the same tokens of the operand."""

from __future__ import annotations

import onnx

from act.export.onnx_graph import Graph

TOKENS = 1  # the axis of [batch, tokens, channels]
UNARY = ("Gelu", "FastGelu", "Relu", "Sigmoid", "Tanh", "Erf", "HardSwish", "Identity", "QuantizeLinear",
         "DequantizeLinear", "Clip")  # fmt: skip
BINARY = ("Add", "Sub", "Mul", "Div")
LAST_AXIS = ("LayerNormalization", "Softmax")


def scalar_parameters(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether every operand but the first is a constant of one element."""
    arrays = [graph.constant(name) for name in node.input[1:] if name]
    return all(array is not None and array.size == 1 for array in arrays)


def reshape_keeps(graph: Graph, node: onnx.NodeProto, axis: int) -> bool:
    """Whether a Reshape leaves the axes from the second up to `axis` as they are."""
    before, shape = graph.shapes.get(node.input[0], []), graph.constant(node.input[1])
    if shape is None or len(before) <= axis or len(shape) <= axis or int(shape[0]) not in (0, -1):
        return False
    return axis >= 1 and all(int(shape[i]) in (0, before[i]) for i in range(1, axis + 1))
