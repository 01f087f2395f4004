"""Fewer units, and the best weights of what reads them.

All of it is linear algebra on second moments, in float64. Sources: Optimal Brain Surgeon for whole units and heads
(ZipLM, arXiv 2302.04089), least squares for the reader, low-rank bases of q k^T and of proj v in the norm of the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-3  # of the mean diagonal


def ridged(moments: Tensor, damping: float = RIDGE) -> Tensor:
    """`moments` [..., n, n] with a ridge of `damping` times the mean of the diagonal."""
    size = moments.shape[-1]
    diagonal = moments.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True).unsqueeze(-1)
    return moments + torch.eye(size, dtype=moments.dtype, device=moments.device) * (damping * diagonal + 1e-12)


def refit(weight: Tensor, moments: Tensor, basis: Tensor, damping: float = RIDGE) -> Tensor:
    """Weight [out, new] on the reduced input whose output comes closest to that of `weight` [out, n] on all of it.

    The reduced input is `x[basis]` for indices [new], or `basis @ x` for a matrix [new, n].
    """
    moments = moments.double()
    half = moments[:, basis] if basis.dim() == 1 else moments @ basis.double().T
    inner = half[basis] if basis.dim() == 1 else basis.double() @ half
    factor = torch.linalg.cholesky(ridged(inner, damping))
    return torch.cholesky_solve((weight.double() @ half).T, factor).T


def removal_order(weight: Tensor, moments: Tensor, size: int = 1, damping: float = RIDGE) -> Tensor:
    """Groups of `size` consecutive inputs in the order in which they are best removed, int64 [n / size].

    Greedy: the group whose removal, with every other weight moved to make up for it, changes the output of `weight`
    [out, n] least, again and again. Each step updates the inverse of the moments [n, n].
    """
    w = weight.double().clone()
    inverse = torch.linalg.inv(ridged(moments.double(), damping))
    count = w.shape[1] // size
    alive = torch.ones(count, dtype=torch.bool, device=w.device)
    order = []
    for _ in range(count):
        cost = _group_cost(w, inverse, size)
        group = int(torch.where(alive, cost, torch.inf).argmin())
        order.append(group)
        alive[group] = False
        own = slice(group * size, (group + 1) * size)
        rows = torch.linalg.solve(inverse[own, own], inverse[own])
        w -= w[:, own] @ rows
        inverse = inverse - inverse[:, own] @ rows
        # What is gone must not come back through rounding, and the block must stay solvable.
        inverse[own] = 0
        inverse[:, own] = 0
        inverse[own, own] = torch.eye(size, dtype=w.dtype, device=w.device)
        w[:, own] = 0
    return torch.tensor(order, device=weight.device)


def _group_cost(w: Tensor, inverse: Tensor, size: int) -> Tensor:
    if size == 1:
        return w.square().sum(0) / inverse.diagonal()
    count = w.shape[1] // size
    blocks = torch.stack([inverse[g * size : (g + 1) * size, g * size : (g + 1) * size] for g in range(count)])
    parts = w.T.reshape(count, size, -1)
    cost: Tensor = (parts * torch.linalg.solve(blocks, parts)).sum((1, 2))
    return cost


def _root(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Square root of a symmetric matrix [..., n, n], and the inverse of that root."""
    values, vectors = torch.linalg.eigh(moments.double())
    # Directions that the data hardly takes carry rounding errors, of either sign.
    values = values.clamp(min=1e-12).clamp(min=1e-5 * values.amax(-1, keepdim=True)).sqrt().unsqueeze(-2)
    return (vectors * values) @ vectors.mT, (vectors / values) @ vectors.mT


def qk_bases(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bases A, B [heads, d, d] for q and k, best first: `A[:, :r] @ q` and `B[:, :r] @ k` have the products closest to
    q k^T in the mean square over the data, for every r; and what each dimension adds to it [heads, d].

    `queries`, `keys` [heads, d, d] are second moments. A truncated singular value decomposition of q k^T, weighted.
    """
    (root_q, inverse_q), (root_k, inverse_k) = _root(queries), _root(keys)
    left, values, right = torch.linalg.svd(root_q @ root_k)
    scale = values.sqrt().unsqueeze(-2)
    return (inverse_q @ left * scale).mT, (inverse_k @ right.mT * scale).mT, values.square()


def v_bases(weight: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """Bases [heads, d, d] for v, best first: `basis[:, :r] @ v` loses least of the output of `weight` [heads, out, d];
    and what each dimension adds to its mean square [heads, d]. `moments` [heads, d, d] are those of the heads' outputs.
    """
    root, inverse = _root(moments)
    _, values, right = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    return right @ inverse, values.square()
