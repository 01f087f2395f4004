"""Leave out what no logit depends on: after the last attention, most classifiers read one token of all.

A classifier that reads `x[:, 0]` needs only that row of the last block's projection, MLP and norms, and only that
query of its attention; keys and values it needs in full. Rows are independent in all these operators, so the logits
stay the same. In a ViT of 12 blocks this is about a fifteenth of the work.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from act.export.onnx_graph import Graph, attribute, permutation
from act.export.patterns import replace
from act.export.rows import BINARY, LAST_AXIS, TOKENS, UNARY, reshape_keeps, scalar_parameters

_ROWS = ("MatMul", "MatMulIntegerToFloat", "MultiHeadAttention")
_BIAS = 5  # the input of MultiHeadAttention that is added to its scores [batch, heads, queries, keys]
Operand = tuple[int, int]  # (which input, the axis of its tokens)


@dataclass
class _Demand:
    """Readers of a value that need only the first tokens, along `axis`."""

    axis: int
    readers: list[tuple[onnx.NodeProto, int]] = field(default_factory=list)


def keep_read_tokens(model: onnx.ModelProto) -> list[str]:
    """Rewrite `model` in place; the names of the matrix products that now run on the tokens that are read only.

    Nothing changes where the classifier reads all tokens (a mean over them) or the graph has no single such reader.
    """
    graph = Graph(model)
    found = _read_tokens(graph)
    if found is None:
        return []
    value, count = found
    narrow = _Narrowing(graph, count)
    for reader, index in graph.consumers[value]:
        narrow.ask(reader, index, TOKENS)
    products = narrow.walk()
    if products:
        narrow.apply(model)
    return products


def _read_tokens(graph: Graph) -> tuple[str, int] | None:
    """The value [batch, tokens, channels] of which only single tokens are read, and how many from the first on."""
    found: dict[str, int] = {}
    for value, readers in graph.consumers.items():
        if len(graph.shapes.get(value, [])) != 3 or any(node.op_type != "Gather" for node, _ in readers):
            continue
        picks = [graph.constant(node.input[1]) for node, _ in readers if attribute(node, "axis", 0) == TOKENS]
        if len(picks) == len(readers) and all(pick is not None and pick.size == 1 for pick in picks):
            found[value] = 1 + max(int(pick.reshape(())) for pick in picks if pick is not None)
    tokens = {value: graph.shapes[value][TOKENS] or 0 for value in found}
    able = [(value, count) for value, count in found.items() if 1 <= count < tokens[value]]
    return able[0] if len(found) == 1 and able else None


class _Narrowing:
    """Carries the demand for the first `count` tokens from readers to the operators that make them."""

    def __init__(self, graph: Graph, count: int) -> None:
        self.graph, self.count = graph, count
        self.demands: dict[str, _Demand] = {}
        self.met: set[str] = set()  # values that are made narrow
        self.outputs = {value.name for value in graph.graph.output}

    def ask(self, reader: onnx.NodeProto, index: int, axis: int) -> None:
        demand = self.demands.setdefault(reader.input[index], _Demand(axis))
        if demand.axis == axis:
            demand.readers.append((reader, index))

    def walk(self) -> list[str]:
        """Go from the last operator to the first; the products made narrow, in order."""
        products = []
        for node in reversed(self.graph.nodes):
            demand = self.demands.get(node.output[0])
            operands = None if demand is None or len(node.output) > 1 else self._operands(node, demand)
            if operands is None:
                continue
            self.met.add(node.output[0])
            for index, axis in operands:
                self.ask(node, index, axis)
            if node.op_type in _ROWS:
                products.append(node.name)
        return products[::-1]

    def _operands(self, node: onnx.NodeProto, demand: _Demand) -> list[Operand] | None:
        """What a node needs narrow so that its result is; None where all tokens are needed."""
        every = len(demand.readers) == len(self.graph.consumers.get(node.output[0], []))
        rank = len(self.graph.shapes.get(node.output[0], []))
        axis = demand.axis
        if not every or node.output[0] in self.outputs:
            return None
        if node.op_type in UNARY and scalar_parameters(self.graph, node):
            return [(0, axis)]
        if node.op_type in _ROWS:
            # A value without an inferred shape is one of the two operators of three axes.
            if axis != (rank or 3) - 2:
                return None
            biased = node.op_type == "MultiHeadAttention" and len(node.input) > _BIAS
            return [(0, axis), (_BIAS, 2)] if biased else [(0, axis)]
        if node.op_type in LAST_AXIS and rank and axis < rank - 1:
            last = attribute(node, "axis", -1) % rank == rank - 1
            return [(0, axis)] if last else None
        if node.op_type == "Transpose":
            return [(0, permutation(node, rank)[axis])]
        if node.op_type == "Reshape":
            return [(0, axis)] if reshape_keeps(self.graph, node, axis) else None
        return self._binary(node, axis, rank) if node.op_type in BINARY and rank else None

    def _binary(self, node: onnx.NodeProto, axis: int, rank: int) -> list[Operand] | None:
        operands: list[Operand] = []
        for index, name in enumerate(node.input):
            shape = self.graph.shapes.get(name, [])
            at = axis - (rank - len(shape))
            if self.graph.constant(name) is None:
                if len(shape) != rank:
                    return None
                operands.append((index, axis))
            elif at >= 0 and shape[at] != 1:
                return None
        return operands

    def apply(self, model: onnx.ModelProto) -> None:
        """Cut each value that is still made in full before those of its readers that need the first tokens."""
        bounds = {"first": 0, "end": self.count} | {f"axis_{d.axis}": d.axis for d in self.demands.values()}
        names = {key: f"read_tokens/{key}" for key in bounds}
        for key, number in bounds.items():
            model.graph.initializer.append(numpy_helper.from_array(np.array([number], np.int64), names[key]))
        cuts: list[onnx.NodeProto] = []
        for value, demand in self.demands.items():
            if value in self.met:
                continue
            cut = f"{value}/read_tokens"
            inputs = [value, names["first"], names["end"], names[f"axis_{demand.axis}"]]
            cuts.append(helper.make_node("Slice", inputs, [cut], name=cut))
            for reader, index in demand.readers:
                reader.input[index] = cut
        for node in self.graph.nodes:
            if node.op_type == "Reshape" and node.output[0] in self.met:
                self._shorten(model, node)
        stale = [item for item in model.graph.value_info if item.name not in self.met]
        del model.graph.value_info[:]
        model.graph.value_info.extend(stale)
        first = {cut.input[0]: cut for cut in cuts}
        new = {id(node): [node, first[node.output[0]]] for node in self.graph.nodes if node.output[0] in first}
        replace(model.graph, [], new)

    def _shorten(self, model: onnx.ModelProto, node: onnx.NodeProto) -> None:
        shape = self.graph.constant(node.input[1])
        axis = self.demands[node.output[0]].axis
        if shape is None or int(shape[axis]) == 0:
            return
        wanted = shape.copy()
        wanted[axis] = self.count
        node.input[1] = f"{node.output[0]}/read_tokens_shape"
        model.graph.initializer.append(numpy_helper.from_array(wanted, node.input[1]))
