"""The exported graph in ONNX Runtime's own operators, for speed where the standard ones do not fuse.

Each rewrite of the main file makes one node of `com.microsoft` from a pattern of standard nodes: an integer product
with its scales and bias (MatMulIntegerToFloat; the runtime's optimiser leaves the bias outside and copies unsigned
codes), an attention on a joint projection (MultiHeadAttention, which needs no transposed copies), and both together
(QAttention). Weights, scales and codes stay the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from act.backends.onnx_guard import read_onnx
from act.export.onnx_graph import Graph, permutation
from act.export.patterns import (
    Codes,
    IntegerProduct,
    JointProjection,
    activation_codes,
    integer_product,
    joint_projections,
    maker,
    reader,
    replace,
)
from act.export.placement import bypass_attentions
from act.export.projections import hoist_pairs, split_projections
from act.export.tokens import keep_read_tokens
from act.run.atomic import replacing

DOMAIN = "com.microsoft"
FORM = "vitcompress.attention"  # metadata key: how attention products run in the file
_MIDDLE = "zero_point.middle"
Nodes = dict[int, list[onnx.NodeProto]]


def to_contrib(model: onnx.ModelProto, attention: str = "int8") -> dict[str, int]:
    """Rewrite `model` in place; how many nodes of each kind were made. What matches no pattern stays as it is.

    `attention`: int8 keeps the quantisers of attention products, if there are any; float leaves them out.
    """
    work = onnx.ModelProto()
    work.CopyFrom(model)
    if attention == "float":
        bypass_attentions(work)
    work.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    # Shapes cannot be inferred through the runtime's own operators, so they are noted down before.
    work.graph.CopyFrom(onnx.shape_inference.infer_shapes(work).graph)
    made = {"MultiHeadAttention": _attention(work)}
    split_projections(work, quantized_only=True)
    hoist_pairs(work, codes=True)
    made["MatMulIntegerToFloat"] = _integer_products(work)
    if any(made.values()):
        narrow = keep_read_tokens(work)
        made["QAttention"] = _joint_integer_attention(work)
        for kind in ("MatMulIntegerToFloat", "MultiHeadAttention"):
            made[kind] -= made["QAttention"]
        made["products on read tokens only"] = len(narrow)
        del work.graph.value_info[:]
        model.CopyFrom(work)
    return made


def export_contrib(main: Path, target: Path, attention: str) -> dict[str, int]:
    """Write `target` from the main ONNX file, with a note of the form of its attention; what was made."""
    model = read_onnx(main)
    made = to_contrib(model, attention)
    model.metadata_props.add(key=FORM, value=attention)
    with replacing(target) as temporary:
        onnx.save_model(model, str(temporary))
    return made


def _node(kind: str, inputs: Sequence[str], output: str, name: str, **attributes: int | float) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), [output], name=name, domain=DOMAIN, **attributes)


def _integer_products(model: onnx.ModelProto) -> int:
    """Products of codes with a constant and its bias, or with other codes."""
    graph = Graph(model)
    gone: list[onnx.NodeProto] = []
    new: Nodes = {}
    made: set[str] = set()  # codes, which several products may read
    for node in graph.nodes:
        product = integer_product(graph, node)
        last = node if product is None else product.last
        steps = _scores(graph, node) if product is None else _layer(graph, product)
        if steps:
            gone += [node, last]
            new[id(last)] = [step for step in steps if step.output[0] not in made]
            made |= {step.output[0] for step in steps}
    if new:
        model.graph.initializer.append(numpy_helper.from_array(np.array(128, np.uint8), _MIDDLE))
        replace(model.graph, gone, new)
    return len(new)


def _layer(graph: Graph, product: IntegerProduct) -> list[onnx.NodeProto]:
    weight = product.weight
    codes, middle, steps = _unsigned(graph, product.codes)
    zero = weight.input[2] if len(weight.input) > 2 else ""
    bias = [product.bias] if product.bias else []
    inputs = [codes, weight.input[0], product.codes.quantize.input[1], weight.input[1], middle, zero, *bias]
    return [*steps, _node("MatMulIntegerToFloat", inputs, product.last.output[0], product.product.name)]


def _scores(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A product of two activations; one whose result is quantised at once is left to the runtime's own fusion."""
    if node.op_type != "MatMul":
        return []
    left, right = (activation_codes(graph, value) for value in node.input)
    if left is None or right is None or reader(graph, node.output[0], "QuantizeLinear") is not None:
        return []
    codes, middle, steps = _unsigned(graph, left)
    inputs = [codes, right.value, left.quantize.input[1], right.quantize.input[1], middle, *right.quantize.input[2:3]]
    return [*steps, _node("MatMulIntegerToFloat", inputs, node.output[0], node.name)]


def _unsigned(graph: Graph, codes: Codes) -> tuple[str, str, list[onnx.NodeProto]]:
    """(codes, zero point, the nodes that make them): signed codes plus 128, as uint8, which x86 multiplies fastest."""
    quantize = codes.quantize
    zero = graph.constant(quantize.input[2]) if len(quantize.input) > 2 else None
    if zero is not None and zero.dtype == np.uint8:
        return codes.value, quantize.input[2], []
    value = f"{quantize.output[0]}_uint8"
    steps = [helper.make_node("QuantizeLinear", [*quantize.input[:2], _MIDDLE], [value], name=quantize.name)]
    for move in codes.moves:
        copied = onnx.NodeProto.FromString(move.SerializeToString())
        copied.input[0] = value
        value = copied.output[0] = f"{move.output[0]}_uint8"
        steps.append(copied)
    return value, _MIDDLE, steps


def _attention(model: onnx.ModelProto) -> int:
    """softmax(q k^T) v on one projection; merged tokens bring a bias of the scores [batch, 1, 1, tokens]."""
    graph = Graph(model)
    gone: list[onnx.NodeProto] = []
    new: Nodes = {}
    for joint in joint_projections(graph):
        found = _plain_attention(graph, joint)
        if found is None:
            continue
        factor, parts, bias = found
        base, end = parts[1].name, parts[-1]
        sizes, values = f"{base}/sizes", [f"{base}/{name}" for name in ("query", "key", "value")]
        lengths = np.array([joint.heads * joint.width] * 3, np.int64)
        model.graph.initializer.append(numpy_helper.from_array(lengths, sizes))
        steps = [helper.make_node("Split", [joint.value, sizes], values, axis=2, name=f"{base}/Split")]
        inputs = list(values)
        if bias is not None:
            # The operator takes a bias for each query; no bias and no mask come before it among the inputs.
            shape, whole = f"{base}/bias_shape", f"{base}/bias"
            tokens = np.array([1, 1, graph.shapes[bias][3], 1], np.int64)
            model.graph.initializer.append(numpy_helper.from_array(tokens, shape))
            steps.append(helper.make_node("Expand", [bias, shape], [whole], name=f"{base}/Expand"))
            inputs += ["", "", whole]
        fused = _node("MultiHeadAttention", inputs, end.output[0], f"{base}/MultiHeadAttention",
                      num_heads=joint.heads, scale=factor)  # fmt: skip
        new[id(end)] = [*steps, fused]
        gone += parts
    if new:
        replace(model.graph, gone, new)
    return len(new)


def _plain_attention(graph: Graph, joint: JointProjection) -> tuple[float, list[onnx.NodeProto], str | None] | None:
    """(factor of the scores, [first product, softmax, second product, transpose, reshape], bias or None) of an
    attention on the parts of `joint`, with nothing else between them."""
    query, key, value = joint.parts
    # Merging reads the keys as well.
    turns = [node for node, _ in graph.consumers[key] if node.op_type == "Transpose"]
    if len(turns) != 1:
        return None
    turned, bias = turns[0], None
    chain = [query]
    nodes: list[onnx.NodeProto] = []
    for kind in ("Mul", "MatMul", "Softmax", "MatMul", "Transpose", "Reshape"):
        add = reader(graph, chain[-1], "Add") if kind == "Softmax" else None
        if add is not None:
            bias = add.input[1 - list(add.input).index(chain[-1])]
            chain[-1] = add.output[0]
        node = reader(graph, chain[-1], kind)
        if node is None:
            return None
        nodes.append(node)
        chain.append(node.output[0])
    if bias is not None and (graph.constant(bias) is not None or not _for_each_key(graph.shapes.get(bias, []))):
        return None
    scaled, scores, softmax, mix, turn, end = nodes
    factor = graph.constant(scaled.input[1])
    straight = list(scores.input) == [chain[1], turned.output[0]] and list(mix.input) == [chain[3], value]
    heads_first = permutation(turned, 4) == [0, 1, 3, 2] and permutation(turn, 4) == [0, 2, 1, 3]
    if factor is None or factor.size != 1 or not straight or not heads_first:
        return None
    return float(factor.reshape(())), [scores, softmax, mix, turn, end], bias


def _for_each_key(shape: list[int | None]) -> bool:
    """Whether a bias of the scores is the same for all heads and queries: [batch, 1, 1, tokens]."""
    return len(shape) == 4 and shape[1:3] == [1, 1] and shape[3] is not None


def _joint_integer_attention(model: onnx.ModelProto) -> int:
    """MultiHeadAttention on the parts of an integer projection as one node that also makes the projection."""
    graph = Graph(model)
    gone: list[onnx.NodeProto] = []
    new: Nodes = {}
    for node in graph.nodes:
        split = maker(graph, node.input[0], "Split") if node.op_type == "MultiHeadAttention" else None
        product = None if split is None else maker(graph, split.input[0], "MatMulIntegerToFloat")
        if split is None or product is None or list(node.input) != list(split.output) or len(product.input) < 7:
            continue
        if reader(graph, product.output[0], "Split") is None or not _usual_factor(graph, node, product):
            continue
        codes, weight, scale, weight_scale, zero, weight_zero, bias = product.input
        inputs = [codes, weight, bias, scale, weight_scale, "", zero, weight_zero]
        heads = _attributes(node)["num_heads"]
        new[id(node)] = [_node("QAttention", inputs, node.output[0], product.name, num_heads=heads)]
        gone += [product, split, node]
    if new:
        replace(model.graph, gone, new)
    return len(new)


def _usual_factor(graph: Graph, node: onnx.NodeProto, product: onnx.NodeProto) -> bool:
    """Whether the scores are divided by the root of the head's width, the only factor that QAttention knows."""
    weight, attributes = graph.constant(product.input[1]), _attributes(node)
    assert weight is not None
    width = weight.shape[1] // 3 // int(attributes["num_heads"])
    return math.isclose(attributes["scale"], width**-0.5, rel_tol=1e-6)


def _attributes(node: onnx.NodeProto) -> Mapping[str, float]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}
