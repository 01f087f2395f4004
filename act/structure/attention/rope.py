"""EVA-02, DINOv3 and other ViTs with rotary position embeddings."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.layers.attention import resolve_self_attn_mask
from timm.models.eva import EvaAttention
from torch import Tensor, nn
from torch.nn import functional as F

from act.structure.attention.base import AttentionView, ShrunkAttention, identity, joint, present, separate
from act.structure.axes import Axis, K, Q, V


class _Shrunk(ShrunkAttention):
    def forward(
        self: Any,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        q, k, v = self.project(x)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = self.rotate(q, rope).type_as(v), self.rotate(k, rope).type_as(v)
        mask = resolve_self_attn_mask(x.shape[1], q, attn_mask, is_causal)
        x = self.attend(q, k, v, mask)
        x = x if gate is None else x * gate
        y: Tensor = self.proj_drop(self.proj(x))
        return y

    def project(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B, heads, N, size] before normalisation and rotation."""
        if self.qkv is None:
            q, k = self.heads(self.q_proj(x), self.qk_dim), self.heads(self.k_proj(x), self.qk_dim)
            return q, k, self.heads(self.v_proj(x), self.v_dim)
        if getattr(self, "q_bias", None) is None:
            qkv = self.qkv(x)
        else:
            qkv = F.linear(x, self.qkv.weight, torch.cat((self.q_bias, self.k_bias, self.v_bias)))
        found: tuple[Tensor, Tensor, Tensor] = self.split(qkv)
        return found

    def rotate(self: Any, x: Tensor, rope: Tensor) -> Tensor:
        """Rotates every token but the prefix."""
        first = self.num_prefix_tokens
        rotated = apply_rot_embed_cat(x[:, :, first:], rope, half=getattr(self, "rotate_half", False))
        return torch.cat([x[:, :, :first], rotated], dim=2)


class RopeAttention(AttentionView):
    """Joint or separate projections; EVA's has its biases beside the joint one."""

    kinds = (AttentionRope, EvaAttention)
    mixin = _Shrunk

    def axes(self, module: nn.Module) -> list[Axis]:
        extra = [Axis("gate.weight", 0, (V,)), Axis("gate.bias", 0, (V,))]
        if getattr(module, "qkv", None) is None:
            return present(module, *separate("q_proj", "k_proj", "v_proj", *extra))
        extra += [Axis("q_bias", 0, (Q,)), Axis("k_bias", 0, (K,)), Axis("v_bias", 0, (V,))]
        return present(module, *joint(*extra))

    def reason(self, module: nn.Module) -> str | None:
        if getattr(module, "num_kv_groups", 1) > 1:
            return "several heads share keys and values"
        return None if identity(module, "norm") else "its output is normalised over all heads"

    def qk_reason(self, module: nn.Module) -> str | None:
        return "positions are rotations of the dimensions of q and k"

    def v_reason(self, module: nn.Module) -> str | None:
        return None if getattr(module, "gate", None) is None else "its output is gated dimension by dimension"
