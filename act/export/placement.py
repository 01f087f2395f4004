"""Where TensorRT wants Q/DQ in a vision transformer: passes over an exported graph, each on its own.

One shared pair after each LayerNorm and GELU; patch embedding and head in float; an attention quantised at all of its
five points or at none but its output; its factor on the query. A pass changes the model in place and returns a remark
for each thing that a user should know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from act.export.onnx_graph import LAYOUT, PRODUCTS, QDQ, Attention, Graph, attribute, dequantized
from act.export.patterns import drop_dead
from act.verify.tensorrt_products import HEAD_SIZES, LONGEST, scale_after
from act.verify.tensorrt_rules import label

_TO_HEAD = (*LAYOUT, "Add", "Sub", "Mul", "Div", "Mean", "ReduceMean")


def place(model: onnx.ModelProto) -> list[str]:
    """Every pass in order."""
    remarks: list[str] = []
    passes: tuple[Callable[[onnx.ModelProto], list[str]], ...] = (
        signed_codes, merge_pairs, float_edges, float_attentions, scale_queries, fold_float_weights,
    )  # fmt: skip
    for step in passes:
        remarks += step(model)
    drop_dead(model.graph)
    return remarks


def signed_codes(model: onnx.ModelProto) -> list[str]:
    """Quantise to int8 what the main file quantises to uint8, over the same range; TensorRT has no unsigned codes."""
    graph = Graph(model)
    remarks = []
    for node in graph.nodes:
        zero = graph.constant(node.input[2]) if node.op_type in QDQ and len(node.input) > 2 else None
        scale = graph.constant(node.input[1]) if zero is not None else None
        if zero is None or scale is None or zero.dtype != np.uint8:
            continue
        names = [f"{node.input[1]}_int8", "zero_point_int8"]
        values = [(scale * np.float32(255 / 127)).astype(scale.dtype), np.zeros((), np.int8)]
        present = {tensor.name for tensor in model.graph.initializer}
        missing = [(name, value) for name, value in zip(names, values, strict=True) if name not in present]
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in missing)
        node.input[1], node.input[2] = names
        if node.op_type == "QuantizeLinear":
            for value in model.graph.value_info:
                if value.name == node.output[0]:
                    value.type.tensor_type.elem_type = onnx.TensorProto.INT8
            remarks.append(f"{label(node)}: in 127 steps instead of 255, since TensorRT has no unsigned codes")
    return remarks


def merge_pairs(model: onnx.ModelProto) -> list[str]:
    """Use one Q/DQ pair for all readers of a value that quantise it with the same scale."""
    graph = Graph(model)
    first: dict[tuple[object, ...], str] = {}
    renames: dict[str, str] = {}
    for node in graph.nodes:
        for index, name in enumerate(node.input):
            node.input[index] = renames.get(name, name)
        scale = graph.constant(node.input[1]) if node.op_type in ("QuantizeLinear", "DequantizeLinear") else None
        if scale is None or scale.size != 1 or graph.constant(node.input[0]) is not None:
            continue
        zero = node.input[2] if len(node.input) > 2 else ""
        key = (node.op_type, node.input[0], scale.tobytes(), str(scale.dtype), zero)
        if key in first:
            renames[node.output[0]] = first[key]
        else:
            first[key] = node.output[0]
    return []


def float_edges(model: onnx.ModelProto) -> list[str]:
    """Take the pairs off the inputs of the patch embedding and the head."""
    graph = Graph(model)
    remarks = []
    for product in [*_first_products(graph), *_last_products(graph)]:
        if _bypass(graph, product, range(2)):
            remarks.append(f"{label(product)}: in FP16, since it sees the image or makes the logits")
    return remarks


def float_attentions(model: onnx.ModelProto) -> list[str]:
    """Take the pairs off the products of each attention that TensorRT has no integer kernel for."""
    graph = Graph(model)
    remarks = []
    for attention in list(graph.attentions()):
        reason = _not_integer(graph, attention) if attention.integer else None
        if reason is not None:
            for product in (attention.scores, attention.mix):
                _bypass(graph, product, range(2))
            remarks.append(f"{label(attention.softmax)}: attention in FP16, since {reason}")
    return remarks


def bypass_attentions(model: onnx.ModelProto) -> int:
    """Take the pairs off the products of every attention; how many attentions were quantised."""
    graph = Graph(model)
    found = [attention for attention in graph.attentions() if attention.integer]
    for attention in found:
        for product in (attention.scores, attention.mix):
            _bypass(graph, product, range(2))
    drop_dead(model.graph)
    return len(found)


def scale_queries(model: onnx.ModelProto) -> list[str]:
    """Move a factor of the scores onto the query; a quantised query keeps its codes, its scale takes the factor."""
    graph = Graph(model)
    for attention in list(graph.attentions()):
        node = scale_after(graph, attention)
        if node is None or len(graph.consumers[attention.scores.output[0]]) != 1:
            continue
        index = 1 - list(node.input).index(attention.scores.output[0])
        factor = graph.constant(node.input[index])
        assert factor is not None
        value = float(factor.reshape(())) if node.op_type == "Mul" else 1 / float(factor.reshape(()))
        if value > 0 and np.isfinite(value):
            _scale_query(model.graph, graph, attention, value)
            _rename(model.graph, node.output[0], attention.scores.output[0])
    return []


def fold_float_weights(model: onnx.ModelProto) -> list[str]:
    """Store the weights of products that run in float as floats; TensorRT has no int8 weight-only product."""
    graph = Graph(model)
    for weight in list(graph.weights()):
        dequantize = weight.path[0] if weight.path else None
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or graph.integer(weight.product):
            continue
        codes, scale = graph.constant(weight.name), graph.constant(dequantize.input[1])
        readers = {id(reader) for reader, _ in graph.consumers[dequantize.output[0]]}
        alone = len(weight.path) == 1 and readers == {id(weight.product)}
        if codes is None or scale is None or codes.dtype != np.int8 or attribute(dequantize, "block_size", 0):
            continue
        if not alone and any(map(graph.integer, _readers(graph, dequantize.output[0]))):
            continue
        name = f"{weight.name.removesuffix('.weight_int8')}.weight_float"
        floats = dequantized(codes, scale, attribute(dequantize, "axis", 1) % codes.ndim)
        model.graph.initializer.append(numpy_helper.from_array(floats.astype(scale.dtype), name))
        _rename(model.graph, dequantize.output[0], name)
    return []


def _first_products(graph: Graph) -> list[onnx.NodeProto]:
    """Products that the image reaches without passing another one."""
    found, seen, names = [], set(), [value.name for value in graph.graph.input]
    while names:
        for node, _ in graph.consumers.get(names.pop(), []):
            if node.output[0] in seen:
                continue
            seen.add(node.output[0])
            if node.op_type in PRODUCTS:
                found.append(node)
            elif node.op_type not in ("Shape", "Size"):  # these tell the number of images, not what is on them
                names += node.output
    return found


def _last_products(graph: Graph) -> list[onnx.NodeProto]:
    """Products whose result becomes logits; none where the output is a residual stream that many products feed."""
    found, seen, names = [], set(), [value.name for value in graph.graph.output]
    while names:
        node = graph.producers.get(names.pop())
        if node is None or node.output[0] in seen:
            continue
        seen.add(node.output[0])
        if node.op_type in PRODUCTS:
            found.append(node)
        elif node.op_type in _TO_HEAD:
            names += node.input
    return found if len(found) <= 2 else []


def _bypass(graph: Graph, product: onnx.NodeProto, operands: Iterable[int]) -> bool:
    """Let `product` read activations before their Q/DQ; whether there was a pair."""
    changed = False
    for operand in operands:
        dequantize = graph.producers.get(product.input[operand])
        quantize = graph.producers.get(dequantize.input[0]) if dequantize is not None else None
        if quantize is not None and dequantize is not None and dequantize.op_type == "DequantizeLinear":
            product.input[operand] = quantize.input[0]
            changed = True
    return changed


def _not_integer(graph: Graph, attention: Attention) -> str | None:
    """Why an attention cannot run on integers, None if it can."""
    missing = [name for name, there in attention.points.items() if not there]
    if missing:
        return f"it is not quantised at {', '.join(missing)}"
    left, right = (graph.shapes.get(name, []) for name in attention.scores.input[:2])
    if len(left) < 2 or len(right) < 2:
        return None
    if left[-1] not in HEAD_SIZES:
        return f"its head size is {left[-1]} and int8 kernels take {', '.join(map(str, HEAD_SIZES))}"
    tokens = max(size or 0 for size in (left[-2], right[-1]))
    return f"its {tokens} tokens are more than the {LONGEST} that int8 kernels take" if tokens > LONGEST else None


def _scale_query(target: onnx.GraphProto, graph: Graph, attention: Attention, factor: float) -> None:
    product = attention.scores
    dequantize = graph.dequantize(product.input[0]) if attention.points["Q"] else None
    base = label(product)
    constants = {f"{base}/factor": np.array(factor, np.float32)}
    source = product.input[0]
    nodes = []
    if dequantize is not None and dequantize.output[0] == source:
        quantize = graph.producers[dequantize.input[0]]
        scale = graph.constant(dequantize.input[1])
        assert scale is not None
        constants[f"{base}/scale"] = (scale * np.float32(factor)).astype(np.float32)
        source = quantize.input[0]
        nodes = [
            helper.make_node("QuantizeLinear", [f"{base}/scaled", f"{base}/scale", *quantize.input[2:]],
                             [f"{base}/codes"], name=f"{base}/QuantizeLinear"),
            helper.make_node("DequantizeLinear", [f"{base}/codes", f"{base}/scale", *quantize.input[2:]],
                             [f"{base}/query"], name=f"{base}/DequantizeLinear"),
        ]  # fmt: skip
    multiply = helper.make_node("Mul", [source, f"{base}/factor"], [f"{base}/scaled"], name=f"{base}/Mul")
    at = next(index for index, node in enumerate(target.node) if node.output[0] == product.output[0])
    target.node[at].input[0] = f"{base}/query" if nodes else f"{base}/scaled"
    for new in reversed([multiply, *nodes]):
        target.node.insert(at, new)
    target.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())


def _readers(graph: Graph, name: str) -> list[onnx.NodeProto]:
    """Products that read `name`, directly or through nodes that change its layout or type."""
    found = []
    for node, _ in graph.consumers.get(name, []):
        if node.op_type in PRODUCTS:
            found.append(node)
        elif node.op_type in LAYOUT:
            found += _readers(graph, node.output[0])
    return found


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
