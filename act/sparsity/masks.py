"""N:M masks: at most `n` nonzeros in every group of `m` consecutive weights along K.

With a `unit` of 2, weights are kept or dropped in pairs of neighbours: `4:8 pairs` keeps 2 of 4 pairs, the form that
4-bit sparse tensor cores run.

K is the reduction axis of the GEMM a layer becomes: in_features of a linear layer; in a convolution the input channels
at one position of the kernel, then the next position, so that a group is m input channels, as TensorRT needs it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

_PATTERN = re.compile(r"\s*(\d+)\s*:\s*(\d+)(\s+pairs)?\s*")
_COMPARE_UP_TO = 8  # pairwise comparison costs m - 1 passes per weight; above this a sort is cheaper


class Pattern(NamedTuple):
    """`n` kept of every `m` consecutive weights along K, `unit` neighbours at a time."""

    n: int
    m: int
    unit: int = 1

    def __str__(self) -> str:
        return f"{self.n}:{self.m}{' pairs' if self.unit == 2 else ''}"


def parse_pattern(text: str) -> Pattern:
    """`"2:4"` -> `(2, 4, 1)`, `"4:8 pairs"` -> `(4, 8, 2)`.

    Raises ValueError unless it reads N:M or N:M pairs with 1 <= N < M, both even with pairs.
    """
    match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"sparsity pattern {text!r} is not of the form 'N:M' or 'N:M pairs', for example '2:4'")
    n, m, unit = int(match[1]), int(match[2]), 2 if match[3] else 1
    if not 1 <= n < m:
        raise ValueError(f"sparsity pattern {text!r}: N:M needs 1 <= N < M (N kept of every M), for example '2:4'")
    if n % unit or m % unit:
        raise ValueError(f"sparsity pattern {text!r}: pairs need an even N and M, for example '4:8 pairs'")
    return Pattern(n, m, unit)


def gemm_rows(weight: Tensor) -> Tensor:
    """A weight `[out, in, ...]` as `[out, K]`, input channels innermost."""
    return weight.movedim(1, -1).flatten(1)


def from_gemm_rows(rows: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `gemm_rows` for a weight of `shape`."""
    return rows.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def grouped(weight: Tensor, m: int) -> Tensor:
    """`[out, in, ...]` as `[out, K // m, m]`. Raises ValueError if there are no two axes or m does not divide `in`."""
    if weight.dim() < 2:
        raise ValueError(f"N:M sparsity needs a weight of at least two axes, got shape {tuple(weight.shape)}")
    if m < 1 or weight.numel() == 0 or weight.shape[1] % m:
        raise ValueError(
            f"weight of shape {tuple(weight.shape)}: its {weight.shape[1]} inputs are not a positive multiple of {m}"
        )
    return gemm_rows(weight).reshape(weight.shape[0], -1, m)


def _check_counts(n: int, m: int, unit: int) -> None:
    if not 1 <= n <= m or n % unit or m % unit:
        raise ValueError(f"{n}:{m} in units of {unit} is not an N:M pattern: 1 <= N <= M, both whole units, is needed")


def nm_mask(score: Tensor, n: int, m: int, unit: int = 1) -> Tensor:
    """Boolean mask, same shape as `score`, True for the `n` largest of every `m` neighbours along K.

    With a `unit` above 1, that many neighbours are kept or dropped together, by the sum of their scores. Among equal
    scores the lower index is kept, so the mask is the same on every machine. NaN counts as +inf: it stays in the
    weight, where it is seen. Exactly `n` entries of each group are True. Raises ValueError if m does not divide the
    inputs.
    """
    _check_counts(n, m, unit)
    groups = grouped(score, m).detach()
    if unit > 1:
        groups = groups.reshape(*groups.shape[:-1], -1, unit).sum(-1)
    kept = _largest(groups, n // unit)
    return from_gemm_rows(kept.repeat_interleave(unit, dim=-1), score.shape)


def _largest(groups: Tensor, n: int) -> Tensor:
    """Boolean `[..., size]`, True for the `n` largest of the last axis."""
    m = groups.shape[-1]
    if groups.is_floating_point():
        groups = torch.nan_to_num(groups, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    if m > _COMPARE_UP_TO:
        kept = groups.argsort(dim=-1, descending=True, stable=True)[..., :n]
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, kept, True)
    columns = [column.contiguous() for column in groups.unbind(-1)]
    beaten = [torch.zeros_like(columns[0], dtype=torch.int8) for _ in range(m)]
    for i in range(m):
        for j in range(i + 1, m):
            i_wins = columns[i] >= columns[j]
            beaten[j] += i_wins
            beaten[i] += ~i_wins
    return torch.stack([losses < n for losses in beaten], dim=-1)


def nm_violations(weight: Tensor, n: int, m: int, unit: int = 1) -> int:
    """Number of groups of `m` along K with more than `n` nonzeros (any dtype, int8 included); 0 means N:M holds.

    With a `unit` above 1, a unit counts as nonzero when any weight of it is.
    """
    _check_counts(n, m, unit)
    nonzero = (grouped(weight, m) != 0).reshape(len(weight), -1, m // unit, unit).any(-1)
    return int((nonzero.sum(dim=-1) > n // unit).sum())


def flip_rate(old: Tensor, new: Tensor) -> float:
    """Share of mask entries that changed: SAD / numel, the sparse architecture divergence of arXiv 2102.04010."""
    if old.shape != new.shape:
        raise ValueError(f"masks of different shapes cannot be compared: {tuple(old.shape)} and {tuple(new.shape)}")
    if old.numel() == 0:
        raise ValueError("empty masks have no flip rate")
    return float((old.bool() != new.bool()).sum()) / old.numel()
