"""Swin: attention within windows, a table of relative positions per head."""

from __future__ import annotations

from typing import Any

from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from act.structure.attention.base import AttentionView, ShrunkAttention, joint, per_head, present
from act.structure.axes import Axis


class _Shrunk(ShrunkAttention):
    def forward(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.split(self.qkv(x))
        bias = self._get_rel_pos_bias()
        if mask is not None:  # [windows, N, N], the same for every image
            # Not len(x), which would fix the number of images of an exported file.
            windows, tokens, _ = mask.shape
            both = (bias + mask.unsqueeze(1)).unsqueeze(0)
            both = both.expand(x.shape[0] // windows, windows, self.num_heads, tokens, tokens)
            bias = both.reshape(-1, self.num_heads, tokens, tokens)
        y: Tensor = self.proj_drop(self.proj(self.attend(q, k, v, bias)))
        return y


class SwinAttention(AttentionView):
    """Joint qkv in windows."""

    kinds = (WindowAttention,)
    mixin = _Shrunk

    def axes(self, module: nn.Module) -> list[Axis]:
        return present(module, *joint(per_head("relative_position_bias_table", 1)))
