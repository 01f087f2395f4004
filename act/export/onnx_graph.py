"""An ONNX graph indexed: makers and readers, types, shapes, weights as their product reads them, attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Array = npt.NDArray[Any]
PRODUCTS = ("MatMul", "Gemm", "Conv")
QDQ = ("QuantizeLinear", "DequantizeLinear")
LAYOUT = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Expand", "Slice", "Split", "Cast")
_TO_WEIGHT = ("Transpose", "Identity", "Cast", *QDQ)
_TO_SCORES = ("Add", "Mul", "Div", "Where", "Cast", "Clip", "Reshape", "Squeeze", "Unsqueeze", "Identity", *QDQ)
_TO_MIX = ("Cast", "Dropout", "Reshape", "Identity", *QDQ)
_FAR = 12  # nodes between a product and the softmax of its attention; the longest known, shifted windows, has 6


@dataclass(frozen=True)
class Weight:
    """A constant operand of a product.

    `array` holds the integers (or floats) in the orientation in which `product` reads them; `k` and `n` are its
    reduction and output-channel axes. `scale_axis`: the axis its scales run along, None for a single scale or none.
    """

    product: onnx.NodeProto
    operand: int
    name: str
    array: Array
    k: int
    n: int
    path: tuple[onnx.NodeProto, ...]
    scale_axis: int | None

    @property
    def quantized(self) -> bool:
        """Whether it comes through a DequantizeLinear."""
        return any(node.op_type == "DequantizeLinear" for node in self.path)


@dataclass(frozen=True)
class Attention:
    """Both products of an attention and its softmax; `points` says which of Q, K, P, V and O are quantised."""

    scores: onnx.NodeProto
    softmax: onnx.NodeProto
    mix: onnx.NodeProto
    points: dict[str, bool]

    @property
    def integer(self) -> bool:
        """Whether an operand of one of its products is quantised."""
        return any(self.points[name] for name in "QKPV")


class Graph:
    """`model`'s graph with inferred types and shapes; constants are initialisers and Constant nodes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.nodes = list(model.graph.node)
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in self.nodes:
            value = next((item.t for item in node.attribute if item.name == "value"), None)
            if node.op_type == "Constant" and value is not None:
                self._tensors[node.output[0]] = value
        self._arrays: dict[str, Array] = {}
        self.producers = {output: node for node in self.nodes for output in node.output}
        self.consumers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in self.nodes:
            for index, name in enumerate(node.input):
                self.consumers.setdefault(name, []).append((node, index))

    @cached_property
    def types(self) -> dict[str, int]:
        """ONNX element type by value, as far as it can be inferred."""
        return self._inferred[0]

    @cached_property
    def shapes(self) -> dict[str, list[int | None]]:
        """Sizes by value, None where one is dynamic, as far as they can be inferred."""
        return self._inferred[1]

    @cached_property
    def _inferred(self) -> tuple[dict[str, int], dict[str, list[int | None]]]:
        types: dict[str, int] = {name: tensor.data_type for name, tensor in self._tensors.items()}
        shapes: dict[str, list[int | None]] = {name: list(tensor.dims) for name, tensor in self._tensors.items()}
        try:
            graph = onnx.shape_inference.infer_shapes(self.model).graph
        except Exception:  # over protobuf's size limit, or operators it does not know; the file's own notes remain
            graph = self.graph
        for value in (*graph.input, *graph.output, *graph.value_info):
            tensor = value.type.tensor_type
            if tensor.elem_type:
                types[value.name] = tensor.elem_type
            if tensor.HasField("shape"):
                shapes[value.name] = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        return types, shapes

    def constant(self, name: str) -> Array | None:
        """The value of a constant, None for an activation."""
        if name in self._tensors and name not in self._arrays:
            self._arrays[name] = to_array(self._tensors[name])
        return self._arrays.get(name)

    def is_constant(self, name: str) -> bool:
        """Whether `name` is a constant, or made of one by quantising, transposing or casting."""
        return self.trace(name)[0] in self._tensors

    def trace(self, name: str) -> tuple[str, tuple[onnx.NodeProto, ...]]:
        """Back from `name` through weight-like nodes: the value they start from, and these nodes from there on."""
        path: list[onnx.NodeProto] = []
        while name not in self._tensors:
            node = self.producers.get(name)
            if node is None or node.op_type not in _TO_WEIGHT:
                break
            path.insert(0, node)
            name = node.input[0]
        return name, tuple(path)

    def dequantize(self, name: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that `name` comes from, seen through changes of layout and type."""
        node = self.producers.get(name)
        while node is not None and node.op_type in LAYOUT:
            node = self.producers.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def products(self) -> Iterator[onnx.NodeProto]:
        """Matrix products and convolutions."""
        return (node for node in self.nodes if node.op_type in PRODUCTS)

    def integer(self, product: onnx.NodeProto) -> bool:
        """Whether both operands are dequantised integers, so that a kernel may multiply the integers."""
        return all(
            any(node.op_type == "DequantizeLinear" for node in self.trace(name)[1]) or self.dequantize(name) is not None
            for name in product.input[:2]
        )

    def weights(self) -> Iterator[Weight]:
        """Every constant operand of every product, scalars and vectors left out."""
        for product in self.products():
            for operand in (0, 1):
                weight = self._weight(product, operand)
                if weight is not None:
                    yield weight

    def _weight(self, product: onnx.NodeProto, operand: int) -> Weight | None:
        name, path = self.trace(product.input[operand])
        array = self.constant(name)
        if array is None or array.ndim < 2:
            return None
        axis: int | None = None
        for node in path:
            if node.op_type == "Transpose":
                perm = permutation(node, array.ndim)
                array = array.transpose(perm)
                axis = None if axis is None else perm.index(axis)
            elif node.op_type in QDQ:
                scale = self.constant(node.input[1])
                if scale is not None and scale.size > 1:
                    axis = attribute(node, "axis", 1) % array.ndim
                if node.op_type == "QuantizeLinear" and scale is not None:
                    array = quantized(array, scale, axis)
        k, n = axes(product, operand, array.ndim)
        return Weight(product, operand, name, array, k, n, path, axis)

    def attentions(self) -> Iterator[Attention]:
        """Softmaxes between two products of activations."""
        for node in self.nodes:
            if node.op_type != "Softmax":
                continue
            scores, mix = self._scores(node.input[0], _FAR), self._mix(node.output[0], _FAR)
            if scores is not None and mix is not None:
                quantized_inputs = [self.dequantize(name) is not None for name in (*scores.input[:2], *mix.input[:2])]
                points = dict(zip("QKPV", quantized_inputs, strict=True)) | {"O": self._quantized_after(mix.output[0])}
                yield Attention(scores, node, mix, points)

    def _scores(self, name: str, far: int) -> onnx.NodeProto | None:
        node = self.producers.get(name)
        if node is None or far == 0:
            return None
        if node.op_type == "MatMul":
            return None if any(map(self.is_constant, node.input)) else node
        if node.op_type not in _TO_SCORES:
            return None
        found = (self._scores(source, far - 1) for source in node.input if source not in self._tensors)
        return next((item for item in found if item is not None), None)

    def _mix(self, name: str, far: int) -> onnx.NodeProto | None:
        for node, index in self.consumers.get(name, []):
            if node.op_type == "MatMul" and index == 0 and not self.is_constant(node.input[1]):
                return node
            if node.op_type in _TO_MIX and index == 0 and far:
                found = self._mix(node.output[0], far - 1)
                if found is not None:
                    return found
        return None

    def _quantized_after(self, name: str) -> bool:
        readers = [node for node, _ in self.consumers.get(name, [])]
        return any(
            node.op_type == "QuantizeLinear" or (node.op_type in LAYOUT and self._quantized_after(node.output[0]))
            for node in readers
        )


def to_array(tensor: onnx.TensorProto) -> Array:
    """The values of a constant; those of INT4 as int8."""
    array: Array = numpy_helper.to_array(tensor)
    return array.astype(np.int8) if tensor.data_type == onnx.TensorProto.INT4 else array


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute of `node`."""
    return next((int(item.i) for item in node.attribute if item.name == name), default)


def permutation(node: onnx.NodeProto, rank: int) -> list[int]:
    """`perm` of a Transpose, reversed axes being the default."""
    found = next((list(item.ints) for item in node.attribute if item.name == "perm"), [])
    return found or list(range(rank))[::-1]


def axes(product: onnx.NodeProto, operand: int, rank: int) -> tuple[int, int]:
    """(K, N): the reduction axis and the output-channel axis of that operand."""
    if product.op_type == "Conv":
        return 1, 0
    if product.op_type == "Gemm":
        first = attribute(product, "transB" if operand else "transA", 0) != operand
        return (0, 1) if first else (1, 0)
    return (rank - 2, rank - 1) if operand else (rank - 1, rank - 2)


def dequantized(codes: Array, scale: Array, axis: int) -> Array:
    """codes * scale in float32; `axis` is the one that a vector of scales runs along."""
    shape = [-1 if index == axis else 1 for index in range(codes.ndim)]
    wide: Array = codes.astype(np.float32) * (scale.reshape(shape) if scale.size > 1 else scale)
    return wide


def quantized(array: Array, scale: Array, axis: int | None) -> Array:
    """round(array / scale) in -128..127, as int8; `axis` is the one that a vector of scales runs along."""
    shape = [-1 if index == axis else 1 for index in range(array.ndim)]
    wide = scale.astype(np.float32).reshape(shape) if scale.size > 1 else scale.astype(np.float32)
    codes: Array = np.clip(np.rint(array.astype(np.float32) / wide), -128, 127).astype(np.int8)
    return codes
