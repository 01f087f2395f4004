"""BEiT: biases beside the joint projection, a table of relative positions per head."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.beit import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from act.structure.attention.base import AttentionView, ShrunkAttention, joint, per_head, present
from act.structure.axes import Axis, K, Q, V


class _Shrunk(ShrunkAttention):
    def forward(self: Any, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        if self.q_bias is None:
            qkv = self.qkv(x)
        else:
            qkv = F.linear(x, self.qkv.weight, torch.cat((self.q_bias, self.k_bias, self.v_bias)))
        bias = shared_rel_pos_bias
        if self.relative_position_bias_table is not None:
            own = self._get_rel_pos_bias()
            bias = own if bias is None else own + bias
        y: Tensor = self.proj_drop(self.proj(self.attend(*self.split(qkv), bias)))
        return y


class BeitAttention(AttentionView):
    """Joint qkv whose k has no bias."""

    kinds = (Attention,)
    mixin = _Shrunk

    def axes(self, module: nn.Module) -> list[Axis]:
        biases = Axis("q_bias", 0, (Q,)), Axis("k_bias", 0, (K,)), Axis("v_bias", 0, (V,))
        return present(module, *joint(*biases, per_head("relative_position_bias_table", 1)))

    def heads_reason(self, module: nn.Module, model: nn.Module) -> str | None:
        shared = getattr(model, "rel_pos_bias", None) is not None
        return "the heads of every block share a table of positions" if shared else None
