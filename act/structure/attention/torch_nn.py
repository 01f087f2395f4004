"""`nn.MultiheadAttention`, as the layers that `act.torch_attention` makes of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from act.structure.attention.base import AttentionView, ShrunkAttention, joint, present
from act.structure.axes import Axis
from act.torch_attention import LayeredAttention


class _Shrunk(ShrunkAttention):
    def _split(self: Any, qkv: Tensor) -> tuple[Tensor, ...]:
        wide, narrow = self.num_heads * self.qk_dim, self.num_heads * self.v_dim
        return torch.split(qkv, [wide, wide, narrow], -1)


class TorchAttention(AttentionView):
    """Joint qkv; any masks."""

    kinds = (LayeredAttention,)
    mixin = _Shrunk

    def axes(self, module: nn.Module) -> list[Axis]:
        return present(module, *joint())
