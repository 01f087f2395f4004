"""Attention inputs in a form that integer kernels fuse: three projections for one, quantised before they are moved.

A joint projection [in, 3 * heads * width] becomes three, so that no copy takes it apart, and the factor on the query
moves into the scales and the bias of the query's. A Q/DQ pair moves before the transposes and reshapes that lead to
it: there the product before it can write the codes itself, and a quarter of the bytes is moved.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from act.export.onnx_graph import Graph
from act.export.patterns import (
    IntegerProduct,
    JointProjection,
    integer_product,
    joint_projections,
    moves,
    reader,
    replace,
)

_PARTS = ("query", "key", "value")


def split_projections(model: onnx.ModelProto, quantized_only: bool = False) -> int:
    """Take joint integer projections apart, in place; how many.

    `quantized_only` leaves those alone whose value is not quantised for the attention's product.
    """
    graph = Graph(model)
    products = {found.last.output[0]: found for node in graph.nodes if (found := integer_product(graph, node))}
    new: dict[int, list[onnx.NodeProto]] = {}
    gone: list[onnx.NodeProto] = []
    for joint in joint_projections(graph):
        product = products.get(joint.value)
        scale = None if product is None else graph.constant(product.weight.input[1])
        if product is None or scale is None or scale.size != 3 * joint.heads * joint.width:
            continue
        if quantized_only and reader(graph, joint.parts[2], "QuantizeLinear") is None:
            continue
        factor, scaled = _factor(graph, joint.parts[0])
        nodes = [_projection(graph, product, joint, part, factor if part == 0 else None) for part in range(3)]
        gone += [product.product, product.last, *(graph.producers[value] for value in joint.parts)]
        if scaled is not None:
            nodes[0][-1].output[0] = scaled.output[0]
            gone.append(scaled)
        new[id(product.last)] = [node for part in nodes for node in part]
    if new:
        replace(model.graph, gone, new)
    return len(new)


def hoist_pairs(model: onnx.ModelProto, codes: bool = False) -> int:
    """Move each Q/DQ pair with a single scale before the transposes and reshapes that lead to it, in place; how many.

    `codes` leaves the DequantizeLinear where it is, so that the codes are moved.
    """
    graph = Graph(model)
    gone: list[onnx.NodeProto] = []
    new: dict[int, list[onnx.NodeProto]] = {}
    changed: set[str] = set()  # values that have another type or shape than is noted down
    for quantize in graph.nodes:
        follower = reader(graph, quantize.output[0], "DequantizeLinear")
        scale = graph.constant(quantize.input[1]) if quantize.op_type == "QuantizeLinear" else None
        path = moves(graph, quantize.input[0]) if follower is not None and scale is not None else []
        if follower is None or scale is None or scale.size != 1 or not path:
            continue
        gone += [*path, quantize, follower]
        changed |= {node.output[0] for node in (quantize, *path)}
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (quantize, follower, *path)]
        first, second, *moved = copies
        first.input[0] = path[0].input[0]
        if codes:
            moved[0].input[0] = first.output[0] = f"{quantize.output[0]}/first"
            moved[-1].output[0] = quantize.output[0]
            new[id(follower)] = [first, *moved, second]
        else:
            moved[0].input[0] = second.output[0] = f"{follower.output[0]}/first"
            moved[-1].output[0] = follower.output[0]
            new[id(follower)] = [first, second, *moved]
    if new:
        notes = [value for value in model.graph.value_info if value.name not in changed]
        del model.graph.value_info[:]
        model.graph.value_info.extend(notes)
        replace(model.graph, gone, new)
    return len(new)


def _factor(graph: Graph, query: str) -> tuple[Any, onnx.NodeProto | None]:
    """The scalar that the query is multiplied by, and the node that does it."""
    scaled = reader(graph, query, "Mul")
    for name in scaled.input if scaled is not None else ():
        factor = graph.constant(name)
        if factor is not None and factor.size == 1:
            return factor.reshape(()), scaled
    return None, None


def _projection(
    graph: Graph, product: IntegerProduct, joint: JointProjection, part: int, factor: Any
) -> list[onnx.NodeProto]:
    """The nodes that make one of the three parts, times `factor`, from the quantised input."""
    base, size = f"{product.product.name}/{_PARTS[part]}", joint.heads * joint.width
    names: list[str] = []
    for index, name in enumerate((product.weight.input[0], product.weight.input[1], product.bias)):
        array = graph.constant(name)
        if array is not None:
            names.append(f"{name}/{_PARTS[part]}")
            columns = np.ascontiguousarray(array[..., part * size : (part + 1) * size])
            if index and factor is not None:
                columns = (columns * factor).astype(columns.dtype)
            graph.graph.initializer.append(numpy_helper.from_array(columns, names[-1]))
    weight, scale, *bias = names
    shape = f"{base}/shape"
    graph.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, joint.heads, joint.width]), shape))

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [output], name=f"{base}/{kind}", **attributes)

    nodes = [
        node("DequantizeLinear", [weight, scale], f"{base}/weight", axis=1),
        node("MatMul", [product.product.input[0], f"{base}/weight"], f"{base}/product"),
    ]
    if bias:
        nodes.append(node("Add", [f"{base}/product", *bias], f"{base}/sum"))
    return [
        *nodes,
        node("Reshape", [nodes[-1].output[0], shape], f"{base}/heads"),
        node("Transpose", [f"{base}/heads"], joint.parts[part], perm=[0, 2, 1, 3]),
    ]
