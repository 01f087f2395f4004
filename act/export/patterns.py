"""Finding and replacing small patterns of standard nodes, for the rewrites that one runtime needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from act.export.onnx_graph import Graph, permutation

JOINT_LAYOUT = [2, 0, 3, 1, 4]  # [batch, tokens, 3, heads, width] to [3, batch, heads, tokens, width]


@dataclass(frozen=True)
class Codes:
    """An activation's codes: its QuantizeLinear, and transposes and reshapes between that and `value`."""

    quantize: onnx.NodeProto
    moves: tuple[onnx.NodeProto, ...]
    value: str


@dataclass(frozen=True)
class IntegerProduct:
    """MatMul of dequantised codes and a dequantised int8 constant [in, out], and the bias after it.

    `bias` is empty where there is none; `last` makes the result.
    """

    product: onnx.NodeProto
    codes: Codes
    weight: onnx.NodeProto
    bias: str
    last: onnx.NodeProto


@dataclass(frozen=True)
class JointProjection:
    """One projection [batch, tokens, 3 * heads * width] taken apart into query, key and value.

    `parts`: the values [batch, heads, tokens, width] of the three.
    """

    value: str
    heads: int
    width: int
    parts: tuple[str, str, str]


def maker(graph: Graph, value: str, kind: str) -> onnx.NodeProto | None:
    """The node of operator `kind` that makes `value`."""
    node = graph.producers.get(value)
    return node if node is not None and node.op_type == kind else None


def reader(graph: Graph, value: str, kind: str) -> onnx.NodeProto | None:
    """The only node that reads `value`, if it is of operator `kind`."""
    readers = [node for node, _ in graph.consumers.get(value, [])]
    alone = len(readers) == 1 and all(output.name != value for output in graph.graph.output)
    return readers[0] if alone and readers[0].op_type == kind else None


def replace(
    graph: onnx.GraphProto, gone: Sequence[onnx.NodeProto], new: Mapping[int, Sequence[onnx.NodeProto]]
) -> None:
    """Leave out the nodes `gone`, put `new[id(node)]` where `node` was, and drop what nothing reads any more."""
    left = {id(node) for node in gone}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += new.get(id(node), () if id(node) in left else (node,))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    drop_dead(graph)


def drop_dead(graph: onnx.GraphProto) -> None:
    """Remove nodes and initialisers that nothing reads."""
    needed = {value.name for value in graph.output}
    alive: list[onnx.NodeProto] = []
    for node in reversed(list(graph.node)):
        if needed & set(node.output):
            alive.append(node)
            needed |= set(node.input)
    kept = onnx.GraphProto()
    kept.node.extend(reversed(alive))
    kept.initializer.extend(tensor for tensor in graph.initializer if tensor.name in needed)
    kept.value_info.extend(v for v in graph.value_info if any(v.name in node.output for node in alive))
    for field in ("node", "initializer", "value_info"):
        del getattr(graph, field)[:]
        getattr(graph, field).extend(getattr(kept, field))


def integer_product(graph: Graph, product: onnx.NodeProto) -> IntegerProduct | None:
    """`product` with what belongs to it, or None if it does not multiply int8 codes by an int8 constant."""
    if product.op_type != "MatMul":
        return None
    codes, right = activation_codes(graph, product.input[0]), maker(graph, product.input[1], "DequantizeLinear")
    weight = None if right is None else graph.constant(right.input[0])
    if codes is None or right is None or weight is None or weight.dtype != np.int8 or weight.ndim != 2:
        return None
    add = reader(graph, product.output[0], "Add")
    for value in add.input if add is not None else ():
        array = graph.constant(value)
        if add is not None and array is not None and array.ndim == 1:
            return IntegerProduct(product, codes, right, value, add)
    return IntegerProduct(product, codes, right, "", product)


def activation_codes(graph: Graph, value: str) -> Codes | None:
    """The codes that `value` is dequantised from, with the scale they were made with."""
    dequantize = maker(graph, value, "DequantizeLinear")
    path = [] if dequantize is None else moves(graph, dequantize.input[0])
    start = "" if dequantize is None else path[0].input[0] if path else dequantize.input[0]
    quantize = maker(graph, start, "QuantizeLinear")
    if dequantize is None or quantize is None or quantize.input[1] != dequantize.input[1]:
        return None
    return Codes(quantize, tuple(path), dequantize.input[0])


def moves(graph: Graph, value: str) -> list[onnx.NodeProto]:
    """The transposes and reshapes that lead to `value` and to nothing else, the first one first."""
    node = graph.producers.get(value)
    if node is None or node.op_type not in ("Transpose", "Reshape") or not alone(graph, value):
        return []
    return [*moves(graph, node.input[0]), node]


def joint_projections(graph: Graph) -> list[JointProjection]:
    """Projections that are reshaped, transposed and cut into query, key and value, and read in no other way."""
    found = []
    for layout in graph.nodes:
        if layout.op_type != "Transpose" or permutation(layout, 5) != JOINT_LAYOUT:
            continue
        split = maker(graph, layout.input[0], "Reshape")
        shape = None if split is None else graph.constant(split.input[1])
        if split is None or shape is None or len(shape) != 5 or shape[2] != 3 or min(shape[3:]) < 1:
            continue
        cuts = _cuts(graph, layout.output[0])
        if cuts is not None and alone(graph, split.input[0]) and alone(graph, split.output[0]):
            found.append(JointProjection(split.input[0], int(shape[3]), int(shape[4]), cuts))
    return found


def alone(graph: Graph, value: str) -> bool:
    return len(graph.consumers.get(value, [])) == 1 and all(output.name != value for output in graph.graph.output)


def _cuts(graph: Graph, value: str) -> tuple[str, str, str] | None:
    """The elements 0, 1 and 2 of `value` along axis 0, each taken by a Gather, or by a Slice and a Squeeze."""
    found: dict[int, str] = {}
    for node, _ in graph.consumers.get(value, []):
        index, end = _element(graph, node)
        if end is None or index in found:
            return None
        found[index] = end
    return (found[0], found[1], found[2]) if sorted(found) == [0, 1, 2] else None


def _element(graph: Graph, node: onnx.NodeProto) -> tuple[int, str | None]:
    if node.op_type == "Gather":
        index = graph.constant(node.input[1])
        axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
        return (-1, None) if index is None or index.size != 1 or axis else (int(index.reshape(())), node.output[0])
    squeeze = reader(graph, node.output[0], "Squeeze") if node.op_type == "Slice" else None
    bounds = [graph.constant(name) for name in node.input[1:4]] if squeeze is not None else []
    if squeeze is None or len(bounds) < 3 or any(bound is None or bound.size != 1 for bound in bounds):
        return -1, None
    start, stop, axis = (int(bound.reshape(())) for bound in bounds if bound is not None)
    return (start, squeeze.output[0]) if stop == start + 1 and axis == 0 else (-1, None)
