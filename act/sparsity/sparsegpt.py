"""One-shot N:M pruning of one linear map by optimal brain surgeon updates (SparseGPT, arXiv 2301.00774).

All of it minimises `tr((W - W') H (W - W')^T)`, the squared error of the layer's output when `H` is the second moment
of its inputs. Computed in float64: K is at most a few thousand, and the inverse of a nearly singular `H` is the whole
method.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from act.sparsity.admm import admm_mask
from act.sparsity.masks import grouped, nm_mask

DAMPING = 0.2  # relative; the paper has 0.01, but on held-out images of a ViT-Tiny 0.05 and then 0.2 were better
_MAX_SUBSETS = 128  # of one group, tried jointly; 4:8 has 70
_BLOCK = 128  # columns updated eagerly before the rest of the weight is touched, as in the paper
_REFIT_BYTES = 256 << 20  # of the batched normal equations held at a time


def output_error(weight: Tensor, new_weight: Tensor, hessian: Tensor) -> float:
    """`tr((W - W') H (W - W')^T)`, in float64, for weights `[out, K]` and `hessian` `[K, K]`."""
    difference = weight.double() - new_weight.double()
    return float(((difference @ hessian.double()) * difference).sum())


def damped(hessian: Tensor, damping: float) -> Tensor:
    """`hessian + damping * mean(diagonal) * I` in float64; the identity when no input was ever nonzero.

    Raises ValueError if `hessian` is not square and finite, or `damping` is not positive.
    """
    if hessian.dim() != 2 or hessian.shape[0] != hessian.shape[1]:
        raise ValueError(f"the Hessian must be square, got shape {tuple(hessian.shape)}")
    if not damping > 0:
        raise ValueError(f"damping must be positive, got {damping}")
    matrix = hessian.double()
    if not bool(matrix.isfinite().all()):
        raise ValueError("the Hessian is not finite: the layer's inputs contain nan or inf")
    eye = torch.eye(matrix.shape[0], dtype=torch.float64, device=matrix.device)
    scale = matrix.diagonal().mean()
    return matrix + damping * scale * eye if scale > 0 else eye


def _subsets(n: int, m: int, unit: int, device: torch.device) -> Tensor | None:
    """`[subsets, m - n]` indices dropped, in the order that keeps lower indices first; None if there are too many."""
    kept = list(combinations(range(m // unit), n // unit))
    if len(kept) > _MAX_SUBSETS or n == m:
        return None
    return torch.tensor([[i for i in range(m) if i // unit not in keep] for keep in kept], device=device)


def _group_mask(group: Tensor, factor: Tensor, n: int, unit: int, subsets: Tensor | None) -> Tensor:
    """Mask of one group `[out, m]` by the error its removal causes after the later columns made up for it.

    `factor` `[m, m]` is the diagonal block of the upper Cholesky factor of the inverse Hessian. Removing the set S
    costs `w_S ([U^T U]_SS)^-1 w_S`, evaluated for every S at once: two weights that compensate each other are not both
    removed.
    """
    m = group.shape[1]
    if subsets is None:
        return nm_mask((group / factor.diagonal()).square(), n, m, unit)
    inverse = factor.T @ factor
    precision = torch.linalg.inv(inverse[subsets[:, :, None], subsets[:, None, :]])
    removed = group[:, subsets]
    cost = torch.einsum("osi,sij,osj->os", removed, precision, removed)
    drop = subsets[cost.argmin(dim=1)]
    return torch.ones_like(group, dtype=torch.bool).scatter_(1, drop, False)


def refit(target: Tensor, hessian: Tensor, mask: Tensor) -> Tensor:
    """The weights on `mask` closest to `target` `[out, K]` in the norm of `hessian`: exact least squares row by row.

    `mask` must keep the same number of weights in every row. Returns float64 `[out, K]`, zero off the mask.
    """
    rows, k = target.shape
    kept = mask.nonzero()[:, 1].reshape(rows, -1)
    gradient = target.double() @ hessian
    result = torch.zeros(rows, k, dtype=torch.float64, device=target.device)
    chunk = max(1, _REFIT_BYTES // (8 * kept.shape[1] ** 2))
    for start in range(0, rows, chunk):
        index = kept[start : start + chunk]
        normal = hessian[index[:, :, None], index[:, None, :]]
        right = gradient[start : start + chunk].gather(1, index).unsqueeze(-1)
        solution = torch.cholesky_solve(right, torch.linalg.cholesky(normal)).squeeze(-1)
        result[start : start + chunk].scatter_(1, index, solution)
    return result


def _sweep_mask(weight: Tensor, hessian: Tensor, n: int, m: int, unit: int) -> Tensor:
    """The mask of SparseGPT's left-to-right sweep, which overwrites the float64 `weight`; the Hessian is damped."""
    rows, k = weight.shape
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    subsets = _subsets(n, m, unit, weight.device)
    mask = torch.ones(rows, k, dtype=torch.bool, device=weight.device)
    width = m * max(1, _BLOCK // m)
    for start in range(0, k, width):
        stop = min(start + width, k)
        block, upper = weight[:, start:stop], factor[start:stop, start:stop]
        errors = torch.zeros_like(block)
        for i in range(stop - start):
            if i % m == 0:
                group = slice(i, i + m)
                chosen = _group_mask(block[:, group], upper[group, group], n, unit, subsets)
                mask[:, start + i : start + i + m] = chosen
            error = block[:, i] * ~mask[:, start + i] / upper[i, i]
            block[:, i:] -= torch.outer(error, upper[i, i:])
            errors[:, i] = error
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    return mask


def sparsegpt(
    weight: Tensor, hessian: Tensor, n: int, m: int, damping: float = DAMPING, *, unit: int = 1
) -> tuple[Tensor, Tensor]:
    """Prune `weight` `[out, K]` to N:M along K, `unit` neighbours at a time, for inputs of second moment `hessian`
    `[K, K]`.

    Masks are chosen group by group during the sweep of arXiv 2301.00774, jointly over each group; afterwards the kept
    weights are solved for exactly, since the sweep freezes a weight before it has seen what is removed to its right.
    The mask of ADMM (arXiv 2406.07831) is taken instead wherever it leaves less error, in the layer as a whole.
    Returns the new weight (dtype of `weight`) and its boolean mask. Raises ValueError on shapes that do not fit.
    """
    grouped(weight, m)
    if weight.dim() != 2 or hessian.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(f"weight {tuple(weight.shape)} and Hessian {tuple(hessian.shape)} do not belong together")
    matrix = damped(hessian, damping)
    results = []
    for mask in (_sweep_mask(weight.double().clone(), matrix, n, m, unit), admm_mask(weight, matrix, n, m, unit)):
        new = refit(weight, matrix, mask)
        results.append((output_error(weight, new, matrix), new, mask))
    _, new, mask = min(results, key=lambda result: result[0])
    return new.to(weight.dtype), mask
