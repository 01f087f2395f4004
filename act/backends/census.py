"""Which matrix products and convolutions of a file really run on integers in ONNX Runtime.

Q/DQ nodes only permit integer kernels; whether a product got one is visible in the graph after ONNX Runtime's own
optimisation, which is what is counted here.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx

from act.backends.onnxruntime import open_session
from act.errors import InputError

INTEGER_OPS = frozenset({
    "QLinearMatMul", "MatMulInteger", "MatMulInteger16", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm",
    "QLinearConv", "ConvInteger", "QAttention",
})  # fmt: skip
FLOAT_OPS = frozenset({
    "MatMul", "FusedMatMul", "FusedMatMulActivation", "TransposeMatMul", "Gemm", "FusedGemm", "GemmFloat8", "Conv",
    "FusedConv", "ConvTranspose", "NhwcFusedConv", "Attention", "MultiHeadAttention", "PackedAttention", "Einsum",
    "MatMulNBits",
})  # fmt: skip


@dataclass(frozen=True)
class Census:
    """Names of the nodes by the arithmetic they run in, in graph order; `operators` counts every operator."""

    integer_nodes: tuple[str, ...]
    float_nodes: tuple[str, ...]
    operators: dict[str, int]

    @property
    def integer(self) -> int:
        """How many products run on integers."""
        return len(self.integer_nodes)

    @property
    def float(self) -> int:
        """How many products run in floating point."""
        return len(self.float_nodes)


def census(path: str | Path) -> Census:
    """Count the products in the graph that ONNX Runtime makes of the file `path` on this CPU."""
    with tempfile.TemporaryDirectory(prefix="vitcompress-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(path, threads=1, optimized=optimized)
        try:
            graph = onnx.load(optimized).graph
        except Exception as error:
            raise InputError(f"{path}: the graph optimised by ONNX Runtime cannot be read: {error}") from error
    return Census(
        integer_nodes=tuple(node.name for node in graph.node if node.op_type in INTEGER_OPS),
        float_nodes=tuple(node.name for node in graph.node if node.op_type in FLOAT_OPS),
        operators=dict(Counter(node.op_type for node in graph.node).most_common()),
    )
