"""Append zero tokens until their number is a multiple of 8; kernels that multiply in tiles of rows can be faster then.

The zero tokens follow the embedded ones and go through every operator that treats tokens alike. No attention sees
them: -inf is added to their scores, so that their probability is 0. What mixes tokens in another way, as a mean over
them does, reads the real ones. What is computed for a real token stays the same, up to the order of sums.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from act.export.onnx_graph import Array, Graph
from act.export.patterns import replace
from act.export.rows import BINARY, TOKENS
from act.export.widening import NONE, Axes, Widening

MULTIPLE = 8
_PADS, _MASK = "appended_tokens/pads", "appended_tokens/mask"
Nodes = dict[int, list[onnx.NodeProto]]


def padding_obstacle(model: onnx.ModelProto) -> str | None:
    """Why `pad_tokens` leaves `model` as it is; None if it does not."""
    found = _plan(Graph(model))
    return found if isinstance(found, str) else None


def pad_tokens(model: onnx.ModelProto) -> int:
    """Rewrite `model` in place; how many zero tokens were appended, 0 where `padding_obstacle` names a reason."""
    plan = _plan(Graph(model))
    if isinstance(plan, str):
        return 0
    count = -plan.tokens % MULTIPLE
    _apply(model, plan, count)
    return count


def _plan(graph: Graph) -> Widening | str:
    """What appending tokens makes longer, from the first value on from which they reach every attention."""
    attentions = list(graph.attentions())
    sizes = {(graph.shapes.get(attention.scores.output[0]) or [None])[-1] for attention in attentions}
    tokens = next(iter(sizes), None)
    if not attentions:
        return "it has no attention"
    if len(sizes) > 1 or tokens is None:
        return f"its attentions see different numbers of tokens ({', '.join(sorted(map(str, sizes)))})"
    if tokens % MULTIPLE == 0:
        return f"its number of tokens, {tokens}, is a multiple of {MULTIPLE} already"
    softmaxes = {attention.softmax.output[0] for attention in attentions}
    for node in graph.nodes:
        if node.output[0] in softmaxes:
            break
        shape = graph.shapes.get(node.output[0], [])
        if len(shape) == 3 and shape[TOKENS] == tokens:
            found = Widening(graph, tokens, node.output[0], {attention.mix.output[0] for attention in attentions})
            if found.spread(softmaxes):
                return found
    return f"not all its attentions can be reached through operators that treat its {tokens} tokens alike"


def _apply(model: onnx.ModelProto, plan: Widening, count: int) -> None:
    graph, padded = plan.graph, f"{plan.source}/padded"
    mask = np.zeros(plan.tokens + count, np.float32)
    mask[plan.tokens :] = -np.inf
    _constant(model, _MASK, mask)
    _constant(model, _PADS, np.array([0, 0, 0, 0, count, 0]))
    maker = graph.producers[plan.source]
    pad = helper.make_node("Pad", [plan.source, _PADS], [padded], name=padded)
    new: Nodes = {id(maker): [maker, pad]} | _real_tokens(model, plan)
    whole = {(id(node), index) for node, index in plan.cuts}
    for node in graph.nodes:
        _lengthen(model, plan, node, count)
        for index, name in enumerate(node.input):
            if name == plan.source and (id(node), index) not in whole:
                node.input[index] = padded
    for node in plan.masked:
        hidden = f"{node.input[0]}/masked"
        add = helper.make_node("Add", [node.input[0], _MASK], [hidden], name=f"{node.name}/mask")
        node.input[0] = hidden
        new[id(node)] = [add, *new.get(id(node), [node])]
    for value in model.graph.value_info:
        for axis in plan.axes.get(value.name, NONE) if value.name != plan.source else ():
            value.type.tensor_type.shape.dim[axis].dim_value += count
    replace(model.graph, [], new)


def _real_tokens(model: onnx.ModelProto, plan: Widening) -> Nodes:
    """Give the operands in `plan.cuts` the real tokens only: the Slice nodes after the makers of their values."""
    new: Nodes = {}
    for value in dict.fromkeys(node.input[index] for node, index in plan.cuts):
        if value == plan.source:
            continue
        short, axes = f"{value}/real_tokens", sorted(plan.axes[value])
        bounds = {"first": [0] * len(axes), "end": [plan.tokens] * len(axes), "axes": axes}
        for key, numbers in bounds.items():
            _constant(model, f"{short}/{key}", np.array(numbers))
        maker = plan.graph.producers[value]
        inputs = [value, *(f"{short}/{key}" for key in bounds)]
        new.setdefault(id(maker), [maker]).append(helper.make_node("Slice", inputs, [short], name=short))
    for node, index in plan.cuts:
        if node.input[index] != plan.source:
            node.input[index] = f"{node.input[index]}/real_tokens"
    return new


def _lengthen(model: onnx.ModelProto, plan: Widening, node: onnx.NodeProto, count: int) -> None:
    """Shapes and constants that hold the number of tokens."""
    axes = plan.axes.get(node.output[0], NONE)
    for index, name in enumerate(node.input if axes else ()):
        array = plan.graph.constant(name)
        longer = None
        if array is not None and node.op_type == "Reshape":
            longer = np.array([size + count * (place in axes and size > 0) for place, size in enumerate(array)])
        elif array is not None and node.op_type in BINARY:
            longer = _with_zeros(array, axes, plan.rank(node.output[0]) - array.ndim, count)
        if longer is not None:
            node.input[index] = f"{node.output[0]}/{index}/padded"
            _constant(model, node.input[index], longer)


def _with_zeros(array: Array, axes: Axes, missing: int, count: int) -> Array | None:
    """A constant continued by zeros along `axes` of the result, which has `missing` axes more; None if it has none."""
    sizes = enumerate(array.shape)
    widths = [(0, count if place + missing in axes and size != 1 else 0) for place, size in sizes]
    return np.pad(array, widths) if any(end for _, end in widths) else None


def _constant(model: onnx.ModelProto, name: str, array: Array) -> None:
    model.graph.initializer.append(numpy_helper.from_array(array, name))
