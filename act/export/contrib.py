"""The exported graph in ONNX Runtime's own operators, for speed where the standard ones do not fuse.

Two rewrites of the main file, each a pattern of standard nodes that becomes one node of `com.microsoft`:
an integer product with its scales and bias (MatMulIntegerToFloat; the runtime's optimiser leaves the bias outside and
copies unsigned codes), and an attention on a joint projection (MultiHeadAttention, which needs no transposed copies
and never stores the attention map). Weights, scales and codes stay the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from act.export.placement import drop_dead
from act.verify.tensorrt_graph import Graph, permutation

DOMAIN = "com.microsoft"
_ZERO = "zero_point_uint8"
_LAYOUT = [2, 0, 3, 1, 4]  # [batch, tokens, 3, heads, width] to [3, batch, heads, tokens, width]


def to_contrib(model: onnx.ModelProto) -> dict[str, int]:
    """Rewrite `model` in place; how many nodes of each kind were made. What matches no pattern stays as it is."""
    made = {"MatMulIntegerToFloat": _integer_products(model), "MultiHeadAttention": _attention(model)}
    if any(made.values()) and all(item.domain != DOMAIN for item in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    drop_dead(model.graph)
    return made


def _maker(graph: Graph, value: str, kind: str) -> onnx.NodeProto | None:
    """The node of operator `kind` that makes `value`."""
    node = graph.producers.get(value)
    return node if node is not None and node.op_type == kind else None


def _reader(graph: Graph, value: str, kind: str) -> onnx.NodeProto | None:
    """The only node that reads `value`, if it is of operator `kind`."""
    readers = [node for node, _ in graph.consumers.get(value, [])]
    alone = len(readers) == 1 and all(output.name != value for output in graph.graph.output)
    return readers[0] if alone and readers[0].op_type == kind else None


def _replace(
    graph: onnx.GraphProto, gone: Sequence[onnx.NodeProto], new: Mapping[int, Sequence[onnx.NodeProto]]
) -> None:
    """Leave out the nodes `gone`; put `new[id(node)]` where `node` was."""
    left = {id(node) for node in gone}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += new.get(id(node), () if id(node) in left else (node,))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _integer_products(model: onnx.ModelProto) -> int:
    """MatMul of two dequantised values, the second a constant, and the bias after it."""
    graph = Graph(model)
    gone: list[onnx.NodeProto] = []
    new: dict[int, list[onnx.NodeProto]] = {}
    for product in graph.nodes:
        if product.op_type != "MatMul":
            continue
        left, right = (_maker(graph, value, "DequantizeLinear") for value in product.input)
        quantize = None if left is None else _maker(graph, left.input[0], "QuantizeLinear")
        weight = None if right is None else graph.constant(right.input[0])
        if left is None or right is None or quantize is None or weight is None or weight.dtype != np.int8:
            continue
        if weight.ndim != 2 or list(quantize.input[1:2]) != list(left.input[1:2]):
            continue
        bias, last = _bias(graph, product)
        codes = f"{quantize.output[0]}_uint8"
        scales = [quantize.input[1], right.input[1]]
        # Unsigned codes with zero point 128 are the signed ones, in the form that x86 multiplies fastest.
        steps = [
            helper.make_node("QuantizeLinear", [quantize.input[0], scales[0], _ZERO], [codes], name=quantize.name),
            helper.make_node(
                "MatMulIntegerToFloat",
                [codes, right.input[0], *scales, _ZERO, *_zero_point(right), *bias],
                [last.output[0]],
                name=product.name,
                domain=DOMAIN,
            ),
        ]
        gone += [product, last]
        new[id(last)] = steps
    if new:
        model.graph.initializer.append(numpy_helper.from_array(np.array(128, np.uint8), _ZERO))
        _replace(model.graph, gone, new)
    return len(new)


def _bias(graph: Graph, product: onnx.NodeProto) -> tuple[list[str], onnx.NodeProto]:
    """The bias [N] added to a product, if it has one, and the last node of the two."""
    add = _reader(graph, product.output[0], "Add")
    for value in add.input if add is not None else ():
        array = graph.constant(value)
        if add is not None and array is not None and array.ndim == 1:
            return [value], add
    return [], product


def _zero_point(weight: onnx.NodeProto) -> list[str]:
    """The weight's zero point, or "" as a place holder."""
    return [weight.input[2] if len(weight.input) > 2 else ""]


def _attention(model: onnx.ModelProto) -> int:
    """softmax(q k^T) v on one projection [batch, tokens, 3 * heads * width], without a mask."""
    graph = Graph(model)
    gone: list[onnx.NodeProto] = []
    new: dict[int, list[onnx.NodeProto]] = {}
    for softmax in graph.nodes:
        found = _joint_attention(graph, softmax) if softmax.op_type == "Softmax" else None
        if found is None:
            continue
        joint, heads, width, factor, end, parts = found
        sizes = f"{softmax.name}/sizes"
        model.graph.initializer.append(numpy_helper.from_array(np.array([heads * width] * 3, np.int64), sizes))
        values = [f"{softmax.name}/{name}" for name in ("query", "key", "value")]
        new[id(end)] = [
            helper.make_node("Split", [joint, sizes], values, axis=2, name=f"{softmax.name}/Split"),
            helper.make_node(
                "MultiHeadAttention",
                values,
                [end.output[0]],
                name=f"{softmax.name}/MultiHeadAttention",
                domain=DOMAIN,
                num_heads=heads,
                scale=factor,
            ),
        ]
        gone += parts
    if new:
        _replace(model.graph, gone, new)
    return len(new)


def _joint_attention(
    graph: Graph, softmax: onnx.NodeProto
) -> tuple[str, int, int, float, onnx.NodeProto, list[onnx.NodeProto]] | None:
    """(projection, heads, width, scale, last node, the nodes that need no longer exist) of an attention."""
    scores = _maker(graph, softmax.input[0], "MatMul")
    average = _reader(graph, softmax.output[0], "MatMul")
    query = None if scores is None else _maker(graph, scores.input[0], "Mul")
    key = None if scores is None else _maker(graph, scores.input[1], "Transpose")
    turn = None if average is None else _reader(graph, average.output[0], "Transpose")
    end = None if turn is None else _reader(graph, turn.output[0], "Reshape")
    if scores is None or average is None or query is None or key is None or turn is None or end is None:
        return None
    factor = graph.constant(query.input[1])
    heads_first = permutation(key, 4) == [0, 1, 3, 2] and permutation(turn, 4) == [0, 2, 1, 3]
    parts = [_part(graph, value) for value in (query.input[0], key.input[0], average.input[1])]
    sources = {part[0] for part in parts if part is not None}
    if factor is None or factor.size != 1 or not heads_first or [part and part[1] for part in parts] != [0, 1, 2]:
        return None
    layout = _maker(graph, sources.pop(), "Transpose") if len(sources) == 1 else None
    split = None if layout is None or permutation(layout, 5) != _LAYOUT else _maker(graph, layout.input[0], "Reshape")
    shape = None if split is None else graph.constant(split.input[1])
    if split is None or shape is None or len(shape) != 5 or shape[2] != 3 or min(shape[3:]) < 1:
        return None
    gone = [scores, softmax, average, turn, end]
    return split.input[0], int(shape[3]), int(shape[4]), float(factor.reshape(())), end, gone


def _part(graph: Graph, value: str) -> tuple[str, int] | None:
    """(source, index) of a value that is one element of its source along axis 0: a Gather, or a Slice and Squeeze."""
    gather = _maker(graph, value, "Gather")
    if gather is not None:
        index = graph.constant(gather.input[1])
        return None if index is None or index.size != 1 else (gather.input[0], int(index.reshape(())))
    squeeze = _maker(graph, value, "Squeeze")
    cut = None if squeeze is None else _maker(graph, squeeze.input[0], "Slice")
    bounds = [] if cut is None else [graph.constant(name) for name in cut.input[1:4]]
    if cut is None or len(bounds) < 3 or any(bound is None or bound.size != 1 for bound in bounds):
        return None
    start, stop, axis = (int(bound.reshape(())) for bound in bounds if bound is not None)
    return (cut.input[0], start) if stop == start + 1 and axis == 0 else None
