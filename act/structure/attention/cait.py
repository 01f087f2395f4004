"""CaiT: heads that talk to each other, and attention of the class token alone."""

from __future__ import annotations

from typing import Any

from timm.models.cait import ClassAttn, TalkingHeadAttn
from torch import Tensor, nn

from act.structure.attention.base import AttentionView, ShrunkAttention, joint, per_head, present, separate
from act.structure.axes import Axis


class _ShrunkTalking(ShrunkAttention):
    def forward(self: Any, x: Tensor) -> Tensor:
        q, k, v = self.split(self.qkv(x))
        scores = (q * self.scale) @ k.transpose(-2, -1)
        scores = self.proj_l(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(dim=-1)
        weights = self.attn_drop(self.proj_w(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        y: Tensor = self.proj_drop(self.proj((weights @ v).transpose(1, 2).flatten(2)))
        return y


class CaitAttention(AttentionView):
    """Joint qkv; two small linear layers mix the heads before and after the softmax."""

    kinds = (TalkingHeadAttn,)
    mixin = _ShrunkTalking

    def axes(self, module: nn.Module) -> list[Axis]:
        mixing = [
            per_head(f"{name}.{leaf}", dim)
            for name in ("proj_l", "proj_w")
            for leaf, dim in (("weight", 0), ("weight", 1), ("bias", 0))
        ]
        return present(module, *joint(*mixing))


class _ShrunkClass(ShrunkAttention):
    def forward(self: Any, x: Tensor) -> Tensor:
        q = self.heads(self.q(x[:, :1]), self.qk_dim)
        k, v = self.heads(self.k(x), self.qk_dim), self.heads(self.v(x), self.v_dim)
        y: Tensor = self.proj_drop(self.proj(self.attend(q, k, v)))
        return y


class CaitClassAttention(AttentionView):
    """Separate projections; the class token is the only query."""

    kinds = (ClassAttn,)
    mixin = _ShrunkClass

    def axes(self, module: nn.Module) -> list[Axis]:
        return present(module, *separate("q", "k", "v"))
