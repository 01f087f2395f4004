"""N:M masks by ADMM, which looks at all of a row at once where the sweep of SparseGPT looks to the right only."""

from __future__ import annotations

import torch
from torch import Tensor

from act.sparsity.masks import nm_mask

# The penalty starts low enough for the mask to move freely and ends some sixty times the mean eigenvalue of the scaled
# Hessian, where it no longer does. Slower growth gains under 1 % more of the layer's error for twice the time.
_PENALTY = 0.03
_GROWTH = 1.1
_STEPS = 80


def admm_mask(target: Tensor, hessian: Tensor, n: int, m: int, unit: int = 1) -> Tensor:
    """N:M mask for `target` `[out, K]` that leaves a low `tr((W - W') H (W - W')^T)` once the kept weights are
    refitted.

    Alternates a ridge solve with the projection onto N:M under a growing penalty (ALPS, arXiv 2406.07831), on the
    Hessian scaled to a unit diagonal. `hessian` `[K, K]` is positive definite. All rows share one eigendecomposition.
    In float32: only the mask is kept.
    """
    scale = hessian.diagonal().sqrt()
    eigenvalues, vectors = torch.linalg.eigh(hessian / torch.outer(scale, scale))
    eigenvalues, vectors = eigenvalues.float(), vectors.float()
    weight = (target * scale).float()
    gradient = weight @ vectors * eigenvalues @ vectors.T
    sparse = weight * nm_mask(weight.square(), n, m, unit)
    dual = torch.zeros_like(weight)
    penalty = _PENALTY
    for _ in range(_STEPS):
        dense = (gradient + penalty * sparse - dual) @ vectors / (eigenvalues + penalty) @ vectors.T
        wanted = dense + dual / penalty
        sparse = wanted * nm_mask(wanted.square(), n, m, unit)
        dual = dual + penalty * (dense - sparse)
        penalty *= _GROWTH
    return nm_mask(sparse.square(), n, m, unit)
