"""Searching an order of columns in which an N:M mask keeps more (Pool & Yu, NeurIPS 2021).

Columns are split into stripes of M; which columns share a stripe is all that matters. Stripes are paired off as in a
round-robin tournament, so that every two of them meet once, and all pairs of a round are improved at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from act.sparsity.masks import nm_mask

_WORK = 120_000_000  # scores looked at per search: some 3 s on two cores
_ROUNDS = 300  # at most, for small layers
_ROWS = 8192  # rows that a search looks at; more are sampled
_ESCAPES = 4  # random swaps out of a local optimum, each followed by tournaments to the next
_GAIN = 1e-6  # relative; less is rounding


@dataclass(frozen=True)
class Kept:
    """Sum of scores that a mask keeps before and after the permutation, and the best half (or N / M) of every row,
    which no permutation can exceed."""

    plain: float
    permuted: float
    bound: float

    @property
    def efficacy(self) -> float:
        """Percent of the gap between plain and bound that the permutation wins, as ASP states it."""
        gap = self.bound - self.plain
        return 100 * (self.permuted - self.plain) / gap if gap > 0 else 0.0

    def shares(self) -> dict[str, float]:
        """Percent of the bound that is kept `before` and `after`, and the `efficacy`."""
        bound = self.bound or 1.0  # where every score is 0
        before, after = 100 * self.plain / bound, 100 * self.permuted / bound
        return {"before": round(before, 3), "after": round(after, 3), "efficacy": round(self.efficacy, 2)}

    def text(self) -> str:
        """For a log line."""
        share = self.shares()
        return (
            f"keeps {share['after']:.2f} % of what fits at all, {share['before']:.2f} in the old order; "
            f"efficacy {share['efficacy']:.1f} %"
        )

    def __add__(self, other: Kept) -> Kept:
        return Kept(self.plain + other.plain, self.permuted + other.permuted, self.bound + other.bound)


def kept_score(score: Tensor, order: Tensor, n: int, m: int, unit: int = 1) -> Kept:
    """What N:M keeps of `score` `[rows, K]`, in its own order of columns and in `order` `[K]`."""

    def kept(columns: Tensor) -> float:
        return float((columns * nm_mask(columns, n, m, unit)).sum(dtype=torch.float64))

    best = score.topk(score.shape[1] * n // m, dim=1).values.sum(dtype=torch.float64)
    return Kept(kept(score), kept(score[:, order]), float(best))


def search_order(score: Tensor, n: int, m: int, unit: int = 1, *, block: int | None = None, seed: int = 0) -> Tensor:
    """Order of the columns of `score` `[rows, K]`, all >= 0, that raises what an N:M mask keeps of it: `[K]` indices.

    Columns stay within their `block` consecutive ones (None: all of K), a multiple of m. For groups of 4 every two
    stripes are repartitioned in the best of the 35 ways; for larger groups, and `unit` consecutive weights that are
    kept or dropped together, the best swap of two columns is taken. Where nothing improves any more, random swaps lead
    out, and the best order seen is returned. The same seed gives the same order.
    """
    rows, k = score.shape
    generator = torch.Generator().manual_seed(seed)
    if rows > _ROWS:
        score = score[torch.randperm(rows, generator=generator)[:_ROWS].sort().values]
    columns = score.float().t().contiguous()
    size = block or k
    order = torch.arange(k, device=score.device)
    best, best_kept, escapes = order, -1.0, 0
    left = min(_ROUNDS, max(1, _WORK // columns.numel()))
    while size > m and left > 0:
        gained = False
        for pairs in _tournament(size // m, k // size, generator):
            found = _improve(columns, order.view(-1, m), pairs.to(score.device), n, unit)
            gained, left = gained or found, left - 1
            if left <= 0:
                break
        if gained and left > 0:
            continue
        kept = _kept(columns, order, n, m, unit)
        if kept > best_kept:
            best, best_kept = order.clone(), kept
        if escapes == _ESCAPES:
            break
        escapes += 1
        order = best.clone()
        _shake(order.view(k // size, size), generator)
    return best


def _tournament(stripes: int, blocks: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rounds of disjoint pairs `[2, pairs]` in which every two stripes of a block meet once (the circle method)."""
    ids = torch.randperm(stripes, generator=generator).tolist() + [None] * (stripes % 2)
    offsets = torch.arange(blocks) * stripes
    for _ in range(len(ids) - 1):
        met = [pair for pair in zip(ids, reversed(ids), strict=True)][: len(ids) // 2]
        pairs = torch.tensor([pair for pair in met if None not in pair]).t()
        yield (pairs[:, None, :] + offsets[None, :, None]).flatten(1)
        ids = [ids[0], ids[-1], *ids[1:-1]]


def _improve(columns: Tensor, stripes: Tensor, pairs: Tensor, n: int, unit: int) -> bool:
    """Improve every pair of `stripes` `[stripes, m]` (column indices, changed in place); whether any was."""
    m = stripes.shape[1]
    both = torch.cat([stripes[pairs[0]], stripes[pairs[1]]], dim=1)
    values = columns[both.t().flatten()].view(2 * m, len(both), -1)
    if m == 4 and unit == 1:
        gain, new = _best_partition(values, n)
    else:
        gain, new = _best_swap(values, n, unit)
    better = gain > 0
    both = both.gather(1, new)
    stripes[pairs[0][better]], stripes[pairs[1][better]] = both[better, :m], both[better, m:]
    return bool(better.any())


def _best_partition(values: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """For each pair of stripes of 4, `values` `[8, pairs, rows]`: gain `[pairs]` and order `[pairs, 8]` of the best of
    the 35 ways to split 8 columns in two."""
    sums: dict[tuple[int, ...], Tensor] = {(i, j): values[i] + values[j] for i, j in combinations(range(8), 2)}
    highs: dict[tuple[int, ...], Tensor] = {
        (i, j): torch.maximum(values[i], values[j]) for i, j in combinations(range(8), 2)
    }
    totals = values.sum(-1)

    def kept(columns: tuple[int, ...]) -> Tensor:
        left, right = columns[:2], columns[2:]
        if n == 1:
            return torch.maximum(highs[left], highs[right]).sum(-1)
        if n == 2:
            one_side = torch.maximum(sums[left], sums[right])
            return torch.maximum(one_side, highs[left] + highs[right]).sum(-1)
        lowest = torch.minimum(sums[left] - highs[left], sums[right] - highs[right])
        return totals[list(columns)].sum(0) - lowest.sum(-1)

    halves = [(0, *rest) for rest in combinations(range(1, 8), 3)]
    others = [tuple(i for i in range(8) if i not in half) for half in halves]
    scores = torch.stack([kept(half) + kept(other) for half, other in zip(halves, others, strict=True)])
    best, index = scores.max(0)
    gain = best - scores[0]
    orders = torch.tensor([half + other for half, other in zip(halves, others, strict=True)], device=values.device)
    return gain * (gain > _GAIN * best), orders[index]


def _best_swap(values: Tensor, n: int, unit: int) -> tuple[Tensor, Tensor]:
    """The best exchange of a column of the first stripe with one of the second; arguments and results as above."""
    m = len(values) // 2
    first, second = _Stripe(values[:m], n // unit, unit), _Stripe(values[m:], n // unit, unit)
    gains = torch.stack(
        [first.replaced(a, values[m + b]) + second.replaced(b, values[a]) for a in range(m) for b in range(m)]
    )
    best, index = gains.max(0)
    order = torch.arange(2 * m, device=values.device).repeat(len(best), 1)
    a, b = (index // m)[:, None], (index % m + m)[:, None]
    order.scatter_(1, a, b).scatter_(1, b, a)
    return best * (best > _GAIN * (first.kept + second.kept)), order


class _Stripe:
    """What one stripe of each pair keeps, and would keep with one column replaced; `values` `[m, pairs, rows]`."""

    def __init__(self, values: Tensor, n: int, unit: int) -> None:
        self.values, self.unit = values, unit
        self.units = values.view(-1, unit, *values.shape[1:]).sum(1)
        ranked = _sorted(list(self.units), n + 1)
        inside = self.units >= ranked[n - 1]
        base = torch.stack(ranked[:n]).sum(0)
        self.kept = base.sum(-1)
        # Without unit u, the best n of the others sum to `rest`, and the last of them is `last`.
        self.rest = (base - (self.units - ranked[n]) * inside).sum(-1)
        self.last = torch.where(inside, ranked[n], ranked[n - 1])

    def replaced(self, column: int, by: Tensor) -> Tensor:
        """Gain `[pairs]` when `column` becomes `by` `[pairs, rows]`."""
        u = column // self.unit
        value = by if self.unit == 1 else self.units[u] - self.values[column] + by
        return self.rest[u] + (value - self.last[u]).clamp_(min=0).sum(-1) - self.kept


def _sorted(values: list[Tensor], count: int) -> list[Tensor]:
    """`values`, the largest `count` of each position first and in order: far faster than a sort along a short axis."""
    values = list(values)
    for i in range(min(count, len(values) - 1)):
        for j in range(len(values) - 1, i, -1):
            values[j - 1], values[j] = torch.maximum(values[j - 1], values[j]), torch.minimum(values[j - 1], values[j])
    return values


def _kept(columns: Tensor, order: Tensor, n: int, m: int, unit: int) -> float:
    units = columns[order].view(len(order) // m, m // unit, unit, -1).sum(2)
    return float(units.topk(n // unit, dim=1).values.sum(dtype=torch.float64))


def _shake(blocks: Tensor, generator: torch.Generator) -> None:
    """Exchange one column in eight of every block `[blocks, size]` with others of it, in place."""
    size = blocks.shape[1]
    count = max(2, size // 8)
    for row in blocks:
        where = torch.randperm(size, generator=generator)[:count].to(row.device)
        row[where] = row[where.roll(1)]
