"""Translation of torch's fused attention into plain ONNX operators.

The exporter's own translation computes the transposed shape of the key at run time (eight nodes per attention) and
scales both operands; this one is Mul, Transpose, MatMul, Add, Softmax, MatMul, with the scale on the query before
the first product, which is also where TensorRT wants it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as op

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


def _attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """[..., tokens, head_dim] query, key and value to [..., tokens, head_dim]; the signature is torch's."""
    rank = len(query.shape)
    factor = scale if scale is not None else float(query.shape[-1]) ** -0.5
    scaled = op.Mul(query, op.CastLike(op.Constant(value_float=factor), query))
    scores = op.MatMul(scaled, op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2]))
    if attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def attention_translations(program: torch.export.ExportedProgram) -> dict[Callable[..., Any], Callable[..., Any]]:
    """The exporter's `custom_translation_table` for `program`: empty if an attention in it needs the general form."""
    calls = [node for node in program.graph.nodes if node.target is _ATTENTION]
    return {_ATTENTION: _attention} if all(_simple(node) for node in calls) else {}


def _simple(node: torch.fx.Node) -> bool:
    """Whether the call has no causal mask, no grouped heads, a floating-point mask or none, and static head_dim."""
    arguments = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), node.args, strict=False))
    arguments.update(node.kwargs)
    query, mask = arguments["query"], arguments.get("attn_mask")
    assert isinstance(query, torch.fx.Node)
    static = isinstance(query.meta["val"].shape[-1], int)
    bool_mask = isinstance(mask, torch.fx.Node) and mask.meta["val"].dtype == torch.bool
    return static and not (bool_mask or arguments.get("is_causal") or arguments.get("enable_gqa"))
