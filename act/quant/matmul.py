"""Quantised attention products: q k^T and attention x v.

Attention modules call `torch.matmul` or `scaled_dot_product_attention` inside their forward, so there is no module to
replace. While such a forward runs, a function mode sends these calls through quantisers that belong to the attention
module; its own code stays untouched, which is what makes it work for any family.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from act.edits import edit_op
from act.errors import InputError
from act.quant.fake_quant import FakeQuantize

_MATMULS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)


class _QuantizedMatmuls(TorchFunctionMode):
    """Sends products of two activations through the attention module's quantisers, in call order."""

    def __init__(self, quantizers: nn.ModuleList) -> None:
        super().__init__()
        self.quantizers = quantizers
        self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func in _MATMULS and args[0].dim() >= 3 and args[1].dim() >= 3 and self.calls < 2:
            left, right = self._pair(args[0], args[1])
            return func(left, right)
        return func(*args, **kwargs)

    def _pair(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        index = 2 * self.calls
        self.calls += 1
        return self.quantizers[index](left), self.quantizers[index + 1](right)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        if is_causal:
            raise InputError("quantize_op_types: matmul: causal attention cannot be quantised; leave matmul out")
        # The scale goes onto q before the product, where integer attention kernels expect it.
        query = query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        left, right = self._pair(query, key.transpose(-2, -1))
        scores = left @ right
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        weights = F.dropout(scores.softmax(-1), dropout_p)
        left, right = self._pair(weights, value)
        return left @ right


class QuantizedAttention:
    """Mixin in front of an attention class; `matmul_quantizers` are those of q, k^T, attention and v."""

    matmul_quantizers: nn.ModuleList

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _QuantizedMatmuls(self.matmul_quantizers):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


def attention_modules(model: nn.Module) -> list[str]:
    """Names of modules that compute attention products themselves: they have a head count and a projection."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(getattr(module, "num_heads", None), int)
        and any(isinstance(getattr(module, part, None), nn.Linear) for part in ("proj", "out_proj", "qkv", "q"))
    ]


@edit_op("quantize_matmul")
def quantize_matmuls(model: nn.Module, layers: list[str], activation_bits: int, learn: str = "fixed") -> None:
    """Give each named attention module quantisers for its two products."""
    for name in layers:
        module = model.get_submodule(name)
        if isinstance(module, QuantizedAttention):
            continue
        kind = type(module)
        # Changing the class in place keeps the module's own forward, whatever family it belongs to.
        module.__class__ = type(f"Quantized{kind.__name__}", (QuantizedAttention, kind), {})
        signed = (True, True, False, True)
        module.matmul_quantizers = nn.ModuleList(FakeQuantize(activation_bits, signed=s, learn=learn) for s in signed)
