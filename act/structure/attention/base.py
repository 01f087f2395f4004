"""What pruning sees of an attention module, whatever its family.

A view is one class: which modules it fits, where their heads and dimensions lie, and a mixin whose forward computes
the same attention for any number of heads and any size of q and k, and of v. A new family is one file here.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from act.structure.axes import HEADS, Axis, K, Q, V


class ShrunkAttention:
    """Mixin in front of an attention class whose heads or dimensions were cut."""

    num_heads: int
    qk_dim: int  # dimensions of q and k per head
    v_dim: int
    scale: float  # that of the dense module: what is left of q k^T still has its size
    attn_drop: nn.Dropout
    training: bool

    def heads(self, x: Tensor, size: int) -> Tensor:
        """[B, N, heads * size] as [B, heads, N, size]."""
        batch, tokens, _ = x.shape
        return x.reshape(batch, tokens, self.num_heads, size).transpose(1, 2)

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B, heads, N, size] of a joint projection's output."""
        if self.qk_dim == self.v_dim:  # one reshape, which exporters and runtimes know
            batch, tokens, _ = qkv.shape
            q, k, v = qkv.reshape(batch, tokens, 3, self.num_heads, self.v_dim).permute(2, 0, 3, 1, 4).unbind(0)
            return q, k, v
        wide, narrow = self.num_heads * self.qk_dim, self.num_heads * self.v_dim
        q, k, v = torch.split(qkv, [wide, wide, narrow], -1)
        return self.heads(q, self.qk_dim), self.heads(k, self.qk_dim), self.heads(v, self.v_dim)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, N, heads * v_dim]; `mask` is added to the scores."""
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=self.scale)
        return x.transpose(1, 2).flatten(2)


class AttentionView(ABC):
    """A family of attention modules. Names of tensors are those within the module."""

    kinds: ClassVar[tuple[type[nn.Module], ...]]
    mixin: ClassVar[type[ShrunkAttention]]
    proj: ClassVar[str] = "proj"

    @abstractmethod
    def axes(self, module: nn.Module) -> list[Axis]:
        """Where q, k, v and heads lie in this module's tensors, and v in the input of its projection."""

    def reason(self, module: nn.Module) -> str | None:
        """Why nothing of it can be pruned; None if something can."""
        return None

    def heads_reason(self, module: nn.Module, model: nn.Module) -> str | None:
        """Why the heads must stay in this model; None if they can go."""
        return None

    def qk_reason(self, module: nn.Module) -> str | None:
        """Why the dimensions of q and k must stay; None if they can go."""
        return None

    def v_reason(self, module: nn.Module) -> str | None:
        """Why the dimensions of v must stay; None if they can go."""
        return None

    def attributes(self, heads: int, qk_dim: int, v_dim: int) -> dict[str, int]:
        """Sizes that the module keeps as attributes, for other code that reads them."""
        return {"num_heads": heads}


def present(module: nn.Module, *axes: Axis) -> list[Axis]:
    """Those axes whose tensor the module has (biases are optional)."""
    found = []
    for axis in axes:
        value: object = module
        for part in axis.tensor.split("."):
            value = getattr(value, part, None)
        if isinstance(value, Tensor):
            found.append(axis)
    return found


def joint(*extra: Axis) -> tuple[Axis, ...]:
    """The axes of a joint qkv projection and of the projection behind the heads."""
    qkv = (Q, K, V)
    return Axis("qkv.weight", 0, qkv), Axis("qkv.bias", 0, qkv), Axis("proj.weight", 1, (V,)), *extra


def separate(q: str, k: str, v: str, *extra: Axis) -> tuple[Axis, ...]:
    """The axes of separate projections called `q`, `k`, `v`."""
    found = [Axis(f"{name}.{leaf}", 0, (s,)) for name, s in ((q, Q), (k, K), (v, V)) for leaf in ("weight", "bias")]
    return *found, Axis("proj.weight", 1, (V,)), *extra


def per_head(tensor: str, dim: int) -> Axis:
    """An axis with one entry per head."""
    return Axis(tensor, dim, (HEADS,))


def identity(module: nn.Module, name: str) -> bool:
    """Whether the submodule is absent or does nothing."""
    child = getattr(module, name, None)
    return child is None or isinstance(child, nn.Identity)


def attention_views() -> list[AttentionView]:
    """Every view of this package."""
    import act.structure.attention as package

    for info in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{info.name}")
    return [cls() for cls in AttentionView.__subclasses__()]
