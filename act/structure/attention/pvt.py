"""PVTv2: keys and values from a coarser map, separate from the queries."""

from __future__ import annotations

from typing import Any

from timm.models.pvt_v2 import Attention
from torch import Tensor, nn

from act.structure.attention.base import AttentionView, ShrunkAttention, present
from act.structure.axes import Axis, K, Q, V


class _Shrunk(ShrunkAttention):
    def forward(self: Any, x: Tensor, feat_size: list[int]) -> Tensor:
        q = self.heads(self.q(x), self.qk_dim)
        wide = self.num_heads * self.qk_dim
        k, v = self.kv(self.reduced(x, feat_size)).split([wide, self.num_heads * self.v_dim], -1)
        y: Tensor = self.proj_drop(self.proj(self.attend(q, self.heads(k, self.qk_dim), self.heads(v, self.v_dim))))
        return y

    def reduced(self: Any, x: Tensor, feat_size: list[int]) -> Tensor:
        """The tokens [B, N, C] at the resolution of the keys."""
        if self.sr is None:
            return x
        picture = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *feat_size)
        if self.pool is not None:
            picture = self.pool(picture)
        tokens: Tensor = self.norm(self.sr(picture).flatten(2).transpose(1, 2))
        return tokens if self.act is None else self.act(tokens)


class PvtAttention(AttentionView):
    """q, and k and v together."""

    kinds = (Attention,)
    mixin = _Shrunk

    def axes(self, module: nn.Module) -> list[Axis]:
        parts = (("q", (Q,)), ("kv", (K, V)))
        axes = [Axis(f"{name}.{leaf}", 0, segments) for name, segments in parts for leaf in ("weight", "bias")]
        return present(module, *axes, Axis("proj.weight", 1, (V,)))

    def attributes(self, heads: int, qk_dim: int, v_dim: int) -> dict[str, int]:
        return {"num_heads": heads, "head_dim": v_dim}
