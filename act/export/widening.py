"""What gets longer when tokens are appended to a value: followed through the operators that treat tokens alike."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx

from act.export.onnx_graph import Graph, attribute, permutation
from act.export.rows import BINARY, LAST_AXIS, TOKENS, UNARY, reshape_keeps, scalar_parameters

Axes = frozenset[int]
NONE: Axes = frozenset()
WITH_ZEROS = ("Add", "Sub", "Mul")  # a constant of these may be continued by zeros


@dataclass
class Widening:
    """What gets longer if tokens are appended to the value `source` [batch, tokens, channels].

    `axes`: which axes of a value do; `cuts`: operands that must be as long as before; `masked`: softmaxes over tokens;
    `mixes`: products that sum over tokens with probabilities.
    """

    graph: Graph
    tokens: int
    source: str
    mixes: set[str]
    axes: dict[str, Axes] = field(default_factory=dict)
    cuts: list[tuple[onnx.NodeProto, int]] = field(default_factory=list)
    masked: list[onnx.NodeProto] = field(default_factory=list)

    def spread(self, softmaxes: set[str]) -> bool:
        """Follow the tokens to the end; whether they reach every softmax of `softmaxes` and no output."""
        self.axes[self.source] = frozenset({TOKENS})
        for node in self.graph.nodes:
            wide = [self.axes.get(name, NONE) for name in node.input]
            if not any(wide):
                continue
            if node.op_type == "Softmax" and max(wide[0]) == self.rank(node.input[0]) - 1:
                result = wide[0] if node.output[0] in softmaxes else None
                self.masked += [node] if result else []
            else:
                result = self._result(node, wide)
            if result is None:
                self.cuts += [(node, index) for index, axes in enumerate(wide) if axes]
            elif result:
                self.axes.update(dict.fromkeys(node.output, result))
        outputs = {value.name for value in self.graph.graph.output}
        return softmaxes == {node.output[0] for node in self.masked} and not outputs & self.axes.keys()

    def rank(self, value: str) -> int:
        return len(self.graph.shapes.get(value, []))

    def _result(self, node: onnx.NodeProto, wide: list[Axes]) -> Axes | None:
        """Which axes of a node's result get longer; None where its operands may not."""
        first, kind = wide[0], node.op_type
        if not self.rank(node.output[0]):
            return None
        if kind in UNARY:
            return first if scalar_parameters(self.graph, node) else None
        if kind in LAST_AXIS:
            rank = self.rank(node.input[0])
            last = attribute(node, "axis", -1) % rank == rank - 1
            return first if last and rank - 1 not in first else None
        if kind == "MatMul":
            return self._product(node, wide)
        if kind == "Transpose":
            order = permutation(node, self.rank(node.input[0]))
            return frozenset(order.index(axis) for axis in first)
        if kind == "Reshape":
            return first if all(reshape_keeps(self.graph, node, axis) for axis in first) else None
        if kind in ("Gather", "Slice", "Squeeze"):
            return self._choice(node, first)
        return self._binary(node, wide) if kind in BINARY else None

    def _product(self, node: onnx.NodeProto, wide: list[Axes]) -> Axes | None:
        left, right = (self.rank(name) for name in node.input)
        summed = (left - 1 in wide[0], right - 2 in wide[1])
        rows, columns = wide[0] - {left - 1}, wide[1] - {right - 2}
        if summed[0] != summed[1] or (summed[0] and node.output[0] not in self.mixes):
            return None
        if rows - {left - 2} or columns - {right - 1}:
            return None
        rank = self.rank(node.output[0])
        return frozenset([rank - 2] * bool(rows) + [rank - 1] * bool(columns))

    def _choice(self, node: onnx.NodeProto, wide: Axes) -> Axes | None:
        """Gather and Slice by constants, Squeeze."""
        numbers = [self.graph.constant(name) for name in node.input[1:]]
        if any(array is None for array in numbers):
            return None
        arrays = [array.reshape(-1).tolist() for array in numbers if array is not None]
        if node.op_type == "Gather":
            axis, scalar = attribute(node, "axis", 0), numbers[0] is not None and numbers[0].ndim == 0
            if axis in wide:
                return NONE if len(wide) == 1 and min(arrays[0]) >= 0 else None
            return frozenset(place - (scalar and place > axis) for place in wide) if scalar else wide
        if node.op_type == "Squeeze":
            return frozenset(place - sum(axis < place for axis in arrays[0]) for place in wide) if arrays else None
        return wide if len(arrays) > 2 and not wide & set(arrays[2]) and min(arrays[2]) >= 0 else None

    def _binary(self, node: onnx.NodeProto, wide: list[Axes]) -> Axes | None:
        rank = self.rank(node.output[0])
        result = frozenset(
            axis + rank - self.rank(name) for name, axes in zip(node.input, wide, strict=True) for axis in axes
        )
        for name, axes in zip(node.input, wide, strict=True):
            shape = [1] * (rank - self.rank(name)) + self.graph.shapes.get(name, [])
            full = {axis for axis in result if shape[axis] != 1} - {axis + rank - self.rank(name) for axis in axes}
            if full and (self.graph.constant(name) is None or node.op_type not in WITH_ZEROS):
                return None
        return result
