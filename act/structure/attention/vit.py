"""ViT, DeiT, DeiT-III, DINOv2, MobileViT: timm's common attention."""

from __future__ import annotations

from typing import Any

from timm.layers import Attention
from timm.layers.attention import resolve_self_attn_mask
from torch import Tensor, nn

from act.structure.attention.base import AttentionView, ShrunkAttention, identity, joint, present
from act.structure.axes import Axis, V


class _Shrunk(ShrunkAttention):
    def forward(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        q, k, v = self.split(self.qkv(x))
        mask = resolve_self_attn_mask(x.shape[1], q, attn_mask, is_causal)
        x = self.attend(self.q_norm(q), self.k_norm(k), v, mask)
        x = x if gate is None else x * gate
        y: Tensor = self.proj_drop(self.proj(x))
        return y


class VitAttention(AttentionView):
    """Joint qkv, optionally with normalised q and k, or a gate."""

    kinds = (Attention,)
    mixin = _Shrunk

    def axes(self, module: nn.Module) -> list[Axis]:
        return present(module, *joint(Axis("gate.weight", 0, (V,)), Axis("gate.bias", 0, (V,))))

    def reason(self, module: nn.Module) -> str | None:
        return None if identity(module, "norm") else "its output is normalised over all heads"

    def qk_reason(self, module: nn.Module) -> str | None:
        return None if identity(module, "q_norm") else "q and k are normalised over their dimensions"

    def v_reason(self, module: nn.Module) -> str | None:
        return None if getattr(module, "gate", None) is None else "its output is gated dimension by dimension"

    def attributes(self, heads: int, qk_dim: int, v_dim: int) -> dict[str, int]:
        return {"num_heads": heads, "head_dim": v_dim, "attn_dim": heads * v_dim}
