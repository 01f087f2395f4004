"""SR-STE: training through a mask while the pruned weights are pulled to zero (arXiv 2102.04010)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class StraightThrough(torch.autograd.Function):
    """`StraightThrough.apply(weight, mask)`: `weight * mask` forward, the gradient of that product backward, whole.

    `mask` is boolean of the weight's shape. Pruned weights keep learning and can come back when the mask is chosen
    anew.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        if mask.dtype != torch.bool or mask.shape != weight.shape:
            raise ValueError(
                f"mask must be boolean of shape {tuple(weight.shape)}, got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


@torch.no_grad()
def decay_pruned(weight: Tensor, mask: Tensor, decay: float) -> None:
    """Add `decay * (1 - mask) * weight` to the gradient of `weight`, in place: SR-STE's pull on pruned weights.

    Once per optimiser step, whatever number of backward passes made the gradient. On the gradient and not on the
    weight, with adaptive optimisers as well (arXiv 2404.01847): there the pull is divided by the gradient's usual size,
    so that weights that hardly learn are pulled hard. No gradient, no step and no pull.
    """
    if weight.grad is not None:
        weight.grad.add_(weight.masked_fill(mask, 0).to(weight.grad.dtype), alpha=decay)
