"""Transformer blocks with fewer tokens after their attention than before it.

A block keeps its modules and their names; only the order of its calls is written out anew, with the merging between
attention and MLP. How many tokens each token stands for travels from block to block with the tensor of tokens itself,
so a block can be run alone or again (checkpointing) as long as it gets the tensor the block before it made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from act.edits import edit_op
from act.errors import ActError, InputError
from act.tokens.matching import drop_tokens, merge_tokens

MODES = ("merge", "prune")
_SIZES = "_vitcompress_sizes"  # attribute of a tensor of tokens [B, N, C]: its sizes [B, N, 1]


@dataclass
class AttentionCall:
    """One call of an attention: the bias for its scores, and its query and keys [B, heads, N, d] once it ran."""

    bias: Tensor | None = None
    query: Tensor | None = None
    keys: Tensor | None = None


class _Watch(TorchFunctionMode):
    """Adds the bias to the fused attention that is called, and notes its query and keys."""

    def __init__(self, call: AttentionCall) -> None:
        super().__init__()
        self.call = call

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.call.query, self.call.keys = args[0], args[1]
            if self.call.bias is not None:
                kwargs = {**kwargs, "attn_mask": self.call.bias.to(args[0].dtype)}
        return func(*args, **kwargs)


class MergingAttention:
    """Mixin in front of an attention class, whose own forward it runs."""

    def forward(self, x: Tensor, call: AttentionCall | None = None) -> Any:
        """`call` takes the query and keys, and gives a bias of the scores."""
        with _Watch(call or AttentionCall()):
            return super().forward(x)  # type: ignore[misc]


class TokenMerge(nn.Module):
    """Takes `count` of `tokens` tokens away. `weighted`: whether the tokens that come may stand for several."""

    def __init__(self, tokens: int, count: int, prefix: int, mode: str, proportional: bool, weighted: bool) -> None:
        super().__init__()
        self.tokens, self.count, self.prefix = tokens, count, prefix
        self.mode, self.proportional, self.weighted = mode, proportional, weighted

    def forward(self, x: Tensor, sizes: Tensor | None, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, N, C] to [B, N - count, C], with their sizes [B, N - count, 1]."""
        if self.count == 0:
            return x, sizes
        assert call.query is not None and call.keys is not None
        if self.mode == "prune":
            return drop_tokens(x, call.query, call.keys, self.count, self.prefix), None
        ones = torch.ones_like(x[..., :1]) if sizes is None else sizes
        return merge_tokens(x, ones, call.keys, self.count, self.prefix)


class MergingBlock:
    """Mixin in front of a pre-norm block's class: attention, then merging, then MLP."""

    norm1: nn.Module
    attn: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    token_merge: TokenMerge

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tokens [B, N, C] to [B, N - count, C]; what else the model passes must be None or False."""
        if any(value is not None and value is not False for value in (*args, *kwargs.values())):
            raise ActError("TokenMerge: a block that merges tokens takes no mask, bias or rotation for each position")
        sizes = cast(Tensor | None, getattr(x, _SIZES, None))
        if self.token_merge.weighted and sizes is None:
            raise ActError("TokenMerge: a block did not get what the block before it gave, so their sizes are lost")
        call = AttentionCall(sizes.log()[:, None, None, :, 0] if sizes is not None and self._proportional else None)
        block = cast(nn.Module, self)
        x = x + scaled(block, 1, self.attn(self.norm1(x), call))
        x, sizes = self.token_merge(x, sizes, call)
        x = x + scaled(block, 2, self.mlp(self.norm2(x)))
        if sizes is not None:
            setattr(x, _SIZES, sizes)
        return x

    @property
    def _proportional(self) -> bool:
        return self.token_merge.proportional


def scaled(block: nn.Module, number: int, branch: Tensor) -> Tensor:
    """The output of a block's branch 1 or 2 after what timm's blocks do to it: LayerScale, then stochastic depth."""
    layer_scale, gamma = getattr(block, f"ls{number}", None), getattr(block, f"gamma_{number}", None)
    if layer_scale is not None:
        branch = layer_scale(branch)
    if gamma is not None:
        branch = gamma * branch
    drop = getattr(block, f"drop_path{number}", None)
    return branch if drop is None else cast(Tensor, drop(branch))


@edit_op("merge_tokens")
def merge_in_blocks(
    model: nn.Module, layers: dict[str, dict[str, int]], prefix: int, mode: str, proportional: bool
) -> None:
    """Let each named block take tokens away; an entry holds `tokens`, how many come in, and `count`, how many go.

    A block with `count` 0 after others have merged only learns how many tokens each of its tokens stands for.
    """
    if mode not in MODES:
        raise InputError(f"merge_tokens: mode {mode!r} is unknown; allowed: {', '.join(MODES)}")
    weighted = False
    for name, entry in layers.items():
        block = model.get_submodule(name)
        attention = cast(nn.Module, block.attn)
        attention.__class__ = type(f"Merging{type(attention).__name__}", (MergingAttention, type(attention)), {})
        block.__class__ = type(f"Merging{type(block).__name__}", (MergingBlock, type(block)), {})
        block.token_merge = TokenMerge(entry["tokens"], entry["count"], prefix, mode, proportional, weighted)
        weighted |= mode == "merge" and entry["count"] > 0


def merging_blocks(model: nn.Module) -> dict[str, TokenMerge]:
    """The merging of each merging block by the block's name, in the order of the model."""
    return {name: module.token_merge for name, module in model.named_modules() if isinstance(module, MergingBlock)}
