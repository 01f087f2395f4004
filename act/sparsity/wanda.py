"""Wanda: weight magnitude times the norm of the input it multiplies (arXiv 2306.11695)."""

from __future__ import annotations

from torch import Tensor


def wanda_score(weight: Tensor, input_norm: Tensor) -> Tensor:
    """`|W_ij| * ||x_j||_2`, same shape as `weight` `[out, ...]`; `input_norm` `[K]` is the l2 norm of each input
    feature.

    Any common factor of `input_norm` (root mean square instead of norm) leaves the mask as it is.
    Raises ValueError if `input_norm` does not have K entries.
    """
    flat = weight.reshape(weight.shape[0], -1).abs()
    if input_norm.shape != flat.shape[1:]:
        raise ValueError(f"input_norm has shape {tuple(input_norm.shape)}, the weight needs ({flat.shape[1]},)")
    return (flat * input_norm.to(flat.dtype)).reshape(weight.shape)
