"""Other forms of the integer products of a TensorRT file, for when the builder picks no sparse kernel for the first.

Each function changes the model in place and returns the names of the products it changed. The results are the same up
to the rounding of the body's type.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from act.export.onnx_graph import Array, Graph, Weight, attribute, quantized
from act.verify.tensorrt_rules import label


def float_weights(model: onnx.ModelProto) -> list[str]:
    """Weights as floats with QuantizeLinear and DequantizeLinear, quantised when the engine is built.

    A weight whose integers would not come back exactly is left.
    """
    done = []
    for graph, weight, dequantize in _candidates(model):
        codes, scale = graph.constant(weight.name), graph.constant(dequantize.input[1])
        assert codes is not None and scale is not None
        axis = attribute(dequantize, "axis", 1) % codes.ndim
        shape = [-1 if index == axis else 1 for index in range(codes.ndim)]
        floats = (codes.astype(np.float32) * scale.astype(np.float32).reshape(shape)).astype(scale.dtype)
        if not np.array_equal(quantized(floats, scale, axis), codes):
            continue
        name = f"{weight.name}.float"
        model.graph.initializer.append(numpy_helper.from_array(floats, name))
        made = f"{weight.name}.codes"
        node = helper.make_node("QuantizeLinear", [name, *dequantize.input[1:]], [made], name=made, axis=axis)
        _insert(model.graph, dequantize, [node])
        dequantize.input[0] = made
        done.append(label(weight.product))
    return done


def as_gemm(model: onnx.ModelProto) -> list[str]:
    """MatMul with a weight [K, N] as Gemm with transB and a weight [N, K], rows flattened."""
    done = []
    for graph, weight, dequantize in _candidates(model):
        product, base = weight.product, label(weight.product)
        if product.op_type != "MatMul":
            continue
        rank = len(graph.shapes.get(product.input[0], []))
        k, n = weight.array.shape
        codes = _turned(model, weight, dequantize, (n, k))
        flat, gemm = f"{base}.flat", f"{base}.rows"
        constants = {f"{base}.to_rows": [-1, k], f"{base}.n": [n], f"{base}.zero": [0], f"{base}.last": [-1]}
        _constants(model, constants)
        nodes = [
            helper.make_node("Reshape", [product.input[0], f"{base}.to_rows"], [flat], name=flat),
            _dequantize(dequantize, codes, base),
            helper.make_node("Gemm", [flat, f"{base}.weight"], [gemm], name=base, transB=1),
            helper.make_node(
                "Shape", [product.input[0]], [f"{base}.shape"], name=f"{base}.shape", end=max(rank, 2) - 1
            ),
            helper.make_node("Concat", [f"{base}.shape", f"{base}.n"], [f"{base}.full"], name=f"{base}.full", axis=0),
            helper.make_node("Reshape", [gemm, f"{base}.full"], [product.output[0]], name=f"{base}.unflat"),
        ]
        _replace(model.graph, product, nodes)
        done.append(base)
    return done


def as_convolution(model: onnx.ModelProto) -> list[str]:
    """MatMul of [B, T, K] with a weight [K, N] as a 1x1 convolution over T."""
    done = []
    for graph, weight, dequantize in _candidates(model):
        product, base = weight.product, label(weight.product)
        if product.op_type != "MatMul" or len(graph.shapes.get(product.input[0], [])) != 3:
            continue
        k, n = weight.array.shape
        codes = _turned(model, weight, dequantize, (n, k, 1, 1))
        _constants(model, {f"{base}.last": [3]})
        names = [f"{base}.{step}" for step in ("channels", "image", "mixed", "flat")]
        nodes = [
            helper.make_node("Transpose", [product.input[0]], [names[0]], name=names[0], perm=[0, 2, 1]),
            helper.make_node("Unsqueeze", [names[0], f"{base}.last"], [names[1]], name=names[1]),
            _dequantize(dequantize, codes, base),
            helper.make_node("Conv", [names[1], f"{base}.weight"], [names[2]], name=base, kernel_shape=[1, 1]),
            helper.make_node("Squeeze", [names[2], f"{base}.last"], [names[3]], name=names[3]),
            helper.make_node("Transpose", [names[3]], [product.output[0]], name=f"{base}.tokens", perm=[0, 2, 1]),
        ]
        _replace(model.graph, product, nodes)
        done.append(base)
    return done


def _candidates(model: onnx.ModelProto) -> list[tuple[Graph, Weight, onnx.NodeProto]]:
    """Integer products whose right operand is a matrix of int8 with a DequantizeLinear of its own."""
    graph = Graph(model)
    found = []
    for weight in graph.weights():
        single = len(weight.path) == 1 and weight.path[0].op_type == "DequantizeLinear"
        if weight.operand != 1 or not single or weight.array.ndim != 2 or weight.array.dtype != np.int8:
            continue
        if graph.integer(weight.product) and len(graph.consumers[weight.path[0].output[0]]) == 1:
            found.append((graph, weight, weight.path[0]))
    return found


def _turned(model: onnx.ModelProto, weight: Weight, dequantize: onnx.NodeProto, shape: tuple[int, ...]) -> str:
    """Add the transposed weight in `shape` under a name of its own, which is returned."""
    name = f"{weight.name}.turned"
    if all(tensor.name != name for tensor in model.graph.initializer):
        turned: Array = np.ascontiguousarray(weight.array.T).reshape(shape)
        model.graph.initializer.append(numpy_helper.from_array(turned, name))
    return name


def _dequantize(old: onnx.NodeProto, codes: str, base: str) -> onnx.NodeProto:
    inputs = [codes, *old.input[1:]]
    return helper.make_node("DequantizeLinear", inputs, [f"{base}.weight"], name=f"{base}.dequantize", axis=0)


def _constants(model: onnx.ModelProto, values: dict[str, list[int]]) -> None:
    model.graph.initializer.extend(numpy_helper.from_array(np.array(v, np.int64), k) for k, v in values.items())


def _insert(graph: onnx.GraphProto, before: onnx.NodeProto, nodes: list[onnx.NodeProto]) -> None:
    at = next(index for index, node in enumerate(graph.node) if node.output[0] == before.output[0])
    for node in reversed(nodes):
        graph.node.insert(at, node)


def _replace(graph: onnx.GraphProto, old: onnx.NodeProto, nodes: list[onnx.NodeProto]) -> None:
    at = next(index for index, node in enumerate(graph.node) if node.output[0] == old.output[0])
    del graph.node[at]
    for node in reversed(nodes):
        graph.node.insert(at, node)
