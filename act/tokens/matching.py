"""Which tokens to merge or drop, and merging them: bipartite soft matching as plain functions of tensors.

The number of tokens that go is fixed, so every shape is static. Rows are gathered by index (ONNX GatherND) and only
the r merged rows are added by a product with a one-hot matrix: in ONNX Runtime this takes half the time of selecting
by one-hot products throughout, and less than scattering (ScatterElements).
"""

from __future__ import annotations

import torch
from torch import Tensor


def most_merged(tokens: int, prefix: int) -> int:
    """The most tokens that one merging can take away: half of those after the prefix."""
    return max(tokens - prefix, 0) // 2


def merge_tokens(x: Tensor, sizes: Tensor, keys: Tensor, count: int, prefix: int) -> tuple[Tensor, Tensor]:
    """Merge `count` tokens into the ones most like them (ToMe, arXiv 2210.09461).

    The tokens after the prefix are dealt in turns to two sets. Each of the first set has one partner, the one of the
    second set whose key has the largest cosine with its own; the `count` pairs with the largest cosines are merged,
    each token weighted by how many it stands for. The order is kept: prefix, rest of the first set, second set.

    Args:
        x: tokens [B, N, C].
        sizes: how many tokens each stands for, [B, N, 1].
        keys: [B, heads, N, d]; their mean over the heads is compared.
        count: at most `most_merged(N, prefix)`.
        prefix: tokens at the start that are never merged (class token, registers).

    Returns:
        Tokens [B, N - count, C] and sizes [B, N - count, 1].
    """
    kept, merged, partners = match_tokens(keys, count, prefix)
    # The sizes are one more channel, so that both are gathered and added at once.
    weighted = torch.cat([x * sizes, sizes], dim=-1)
    first, second = weighted[:, prefix::2], weighted[:, prefix + 1 :: 2]
    onto = partners[:, None, :] == torch.arange(second.shape[1], device=x.device)[:, None]
    second = second + onto.to(x.dtype) @ _rows(first, merged)
    result = torch.cat([weighted[:, :prefix], _rows(first, kept), second], dim=1)
    channels = x.shape[-1]
    total = result[..., channels:]
    return result[..., :channels] / total, total


def match_tokens(keys: Tensor, count: int, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices within the first set that stay [B, a - count] in order, and that go [B, count], and the partners of the
    latter within the second set [B, count]."""
    metric = keys.mean(1)
    metric = metric / metric.norm(dim=-1, keepdim=True)
    scores = metric[:, prefix::2] @ metric[:, prefix + 1 :: 2].transpose(-1, -2)
    best, partner = scores.max(-1)
    order = best.argsort(dim=-1, descending=True)
    merged = order[:, :count]
    return order[:, count:].sort(-1).values, merged, partner.gather(1, merged)


def drop_tokens(x: Tensor, query: Tensor, keys: Tensor, count: int, prefix: int) -> Tensor:
    """Drop the `count` tokens after the prefix that the first token attends to least, the mean over the heads.

    The choice of EViT (arXiv 2202.07800), without its fused token. `x` [B, N, C]; `query` and `keys` [B, heads, N, d],
    as they come to the attention; returns [B, N - count, C], in order.
    """
    scores = query[:, :, :1] @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5
    attended = scores.softmax(-1).mean((1, 2))[:, prefix:]
    kept = attended.argsort(dim=-1, descending=True)[:, : attended.shape[1] - count].sort(-1).values
    return torch.cat([x[:, :prefix], _rows(x[:, prefix:], kept)], dim=1)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x [B, N, C] at index [B, K]: [B, K, C]."""
    # Not len(x), which would fix the number of images of an exported file.
    return x[torch.arange(x.shape[0], device=x.device)[:, None], index]
