"""A small FP16 attention block, written node by node, that keeps every rule of TensorRT; tests break one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from act.verify.onnx_file import OnnxFile
from act.verify.tensorrt import Finding, lint

TOKENS, WIDTH, HEADS = 16, 32, 2
HEAD = WIDTH // HEADS


class Block:
    """Collects the nodes and constants of a graph. `half`: the float type of body and scales."""

    def __init__(self, half: Any = np.float16) -> None:
        self.half = half
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def constant(self, name: str, value: Any) -> str:
        if all(tensor.name != name for tensor in self.constants):
            self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def pair(self, value: str, name: str, scale: float = 0.05) -> str:
        parameters = [self.constant(f"{name}.scale", self.half(scale)), self.constant("zero", np.int8(0))]
        codes = self.add("QuantizeLinear", [value, *parameters], f"{name}.q")
        return self.add("DequantizeLinear", [codes, *parameters], f"{name}.dq")

    def linear(self, value: str, name: str, n: int = WIDTH, k: int = WIDTH) -> str:
        """A MatMul with a 2:4 int8 weight [K, N] and a float bias."""
        weight = self.random.integers(1, 127, (k, n)).astype(np.int8)
        weight[0::4], weight[2::4] = 0, 0
        self.constant(f"{name}.weight_int8", weight)
        self.constant(f"{name}.weight_quantizer.scale", np.full(n, 0.01, self.half))
        self.constant(f"zero_{n}", np.zeros(n, np.int8))
        inputs = [f"{name}.weight_int8", f"{name}.weight_quantizer.scale", f"zero_{n}"]
        product = self.add("MatMul", [value, self.add("DequantizeLinear", inputs, f"{name}.w", axis=1)], name)
        return self.add("Add", [product, self.constant(f"{name}.bias", np.ones(n, self.half))], f"{name}.add")

    def heads(self, value: str, name: str, perm: list[int]) -> str:
        shape = self.constant("split", np.array([-1, TOKENS, HEADS, HEAD]))
        return self.add("Transpose", [self.add("Reshape", [value, shape], f"{name}.r")], f"{name}.t", perm=perm)

    def model(self, output: str, opset: int = 21, rank: int = 3) -> onnx.ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.half))
        shape = ["batch", TOKENS, WIDTH]
        graph = helper.make_graph(
            self.nodes, "block", [helper.make_tensor_value_info("x", kind, shape)],
            [helper.make_tensor_value_info(output, kind, ["rows", None, None][-rank:])], self.constants,
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def clean(half: Any = np.float16, opset: int = 21) -> onnx.ModelProto:
    """LayerNorm, q, k, v, int8 attention, projection."""
    b = Block(half)
    ones = b.constant("norm.weight", np.ones(WIDTH, half))
    x = b.pair(b.add("LayerNormalization", ["x", ones], "norm"), "norm")
    q = b.heads(b.linear(x, "q"), "qh", [0, 2, 1, 3])
    k = b.heads(b.linear(x, "k"), "kh", [0, 2, 3, 1])
    v = b.heads(b.linear(x, "v"), "vh", [0, 2, 1, 3])
    q = b.add("Mul", [q, b.constant("factor", half(HEAD**-0.5))], "scaled")
    scores = b.add("MatMul", [b.pair(q, "Q"), b.pair(k, "K")], "scores")
    p = b.pair(b.add("Softmax", [scores], "softmax", axis=-1), "P", 1 / 127)
    mixed = b.add("MatMul", [p, b.pair(v, "V")], "mix")
    joined = b.add("Transpose", [mixed], "join", perm=[0, 2, 1, 3])
    joined = b.add("Reshape", [joined, b.constant("merged", np.array([-1, TOKENS, WIDTH]))], "merge")
    return b.model(b.linear(b.pair(joined, "O"), "proj"), opset)


SPARSE = dict.fromkeys(("q", "k", "v", "proj"), "2:4")


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(item for item in model.graph.node if item.name == name)


def constant(model: onnx.ModelProto, name: str, value: Any) -> str:
    """Set or add a constant."""
    found = [tensor for tensor in model.graph.initializer if tensor.name == name]
    tensor = found[0] if found else model.graph.initializer.add()
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))
    return name


def value_of(model: onnx.ModelProto, name: str) -> Any:
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def bypass(model: onnx.ModelProto, pair: str) -> None:
    """Remove a Q/DQ pair."""
    quantize, dequantize = node(model, f"{pair}.q"), node(model, f"{pair}.dq")
    for item in model.graph.node:
        for index, name in enumerate(item.input):
            if name == dequantize.output[0]:
                item.input[index] = quantize.input[0]
    model.graph.node.remove(quantize)
    model.graph.node.remove(dequantize)


def findings(model: onnx.ModelProto, folder: Path, sparse: dict[str, str] | None = None) -> list[Finding]:
    onnx.save_model(model, str(folder / "block.onnx"))
    return lint(OnnxFile(folder / "block.onnx"), SPARSE if sparse is None else sparse)
