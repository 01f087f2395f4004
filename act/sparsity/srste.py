"""SR-STE: training through a mask while the pruned weights are pulled to zero (arXiv 2102.04010)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class SRSTE(torch.autograd.Function):
    """`SRSTE.apply(weight, mask, decay)`: masked weight forward, straight-through gradient backward.

    Forward: `weight * mask`. Backward: `grad + decay * (~mask) * weight`, so that weights that are pruned now shrink
    and the mask, recomputed every step, flips less often. `mask` is boolean of the weight's shape, `decay` a float (the
    paper uses 2e-4 with SGD; an adaptive optimiser rescales it). With `decay` 0 it is the plain straight-through
    estimator.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, decay: float) -> Tensor:
        if mask.dtype != torch.bool or mask.shape != weight.shape:
            raise ValueError(
                f"mask must be boolean of shape {tuple(weight.shape)}, got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        weight, mask = ctx.saved_tensors
        if ctx.decay:
            grad = grad + ctx.decay * weight.masked_fill(mask, 0).to(grad.dtype)
        return grad, None, None


def srste(weight: Tensor, mask: Tensor, decay: float) -> Tensor:
    """`SRSTE.apply` with types: the masked weight, same shape as `weight`."""
    masked: Tensor = SRSTE.apply(weight, mask, decay)
    return masked
