"""Choosing units and refitting what reads them, against brute force in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from act.structure.allocate import Option, allocate, levels
from act.structure.reduce import qk_bases, refit, removal_order, v_bases


def data(rows: int, width: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=draw, dtype=torch.float64)
    return torch.randn(rows, width, generator=draw, dtype=torch.float64) @ mix


def moments(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


def loss(weight: Tensor, x: Tensor, kept: Tensor) -> float:
    """Mean square of the output that least squares on the kept inputs cannot give."""
    target = x @ weight.T
    fitted = torch.linalg.lstsq(x[:, kept], target).solution
    return float((target - x[:, kept] @ fitted).square().sum() / len(x))


def test_refit_is_least_squares() -> None:
    x, weight, kept = data(500, 8), data(5, 8, 1), torch.tensor([0, 2, 3, 7])
    expected = torch.linalg.lstsq(x[:, kept], x @ weight.T).solution.T
    torch.testing.assert_close(refit(weight, moments(x), kept, damping=0.0), expected)
    basis = torch.eye(8, dtype=torch.float64)[kept]
    torch.testing.assert_close(refit(weight, moments(x), basis, damping=0.0), expected)


@pytest.mark.parametrize("size", [1, 2])
def test_each_removal_is_the_best_single_one(size: int) -> None:
    x, weight = data(400, 8), data(6, 8, 1)
    order = removal_order(weight, moments(x), size, damping=0.0)
    assert sorted(order.tolist()) == list(range(8 // size))
    left = list(range(8 // size))
    for group in order[:-1].tolist():
        costs = {}
        for other in left:
            rest = [size * g + i for g in left if g != other for i in range(size)]
            costs[other] = loss(weight, x, torch.tensor(rest))
        assert costs[group] == pytest.approx(min(costs.values()), rel=1e-6)
        left.remove(group)


def test_qk_bases_give_the_best_low_rank_scores() -> None:
    q, k = data(60, 6, 1), data(50, 6, 2)
    first, second, worth = qk_bases(moments(q)[None], moments(k)[None])
    scores = q @ k.T
    for rank in range(1, 7):
        small = (q @ first[0, :rank].T) @ (k @ second[0, :rank].T).T
        best = torch.linalg.svdvals(scores)[rank:].square().sum()
        torch.testing.assert_close((scores - small).square().sum(), best, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(worth[0, rank:].sum() * len(q) * len(k), best, rtol=1e-6, atol=1e-6)


def test_v_bases_give_the_best_low_rank_output() -> None:
    x, weight = data(300, 6, 1), data(9, 6, 2)
    basis, worth = v_bases(weight[None], moments(x)[None])
    output = x @ weight.T
    for rank in range(1, 6):
        reduced = x @ basis[0, :rank].T
        fitted = reduced @ torch.linalg.lstsq(reduced, output).solution
        best = torch.linalg.svdvals(output)[rank:].square().sum()
        torch.testing.assert_close((output - fitted).square().sum(), best, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(worth[0, rank:].sum() * len(x), best, rtol=1e-6, atol=1e-6)


def test_bases_of_data_in_a_subspace_stay_finite() -> None:
    flat = data(40, 2) @ data(2, 6, 1)
    for basis in (
        *qk_bases(moments(flat)[None], moments(flat)[None])[:2],
        v_bases(data(9, 6)[None], moments(flat)[None])[0],
    ):
        assert bool(basis.isfinite().all()) and basis.abs().max() < 1e4


def test_allocation_is_the_best_of_all() -> None:
    draw = torch.Generator().manual_seed(0)
    options = {}
    for name in "abcd":
        values = torch.rand(4, 2, generator=draw, dtype=torch.float64)
        options[name] = [Option((i,), float(cost), float(lost)) for i, (cost, lost) in enumerate(values)]
    for budget in (0.9, 1.5, 2.5):
        picks = [p for p in itertools.product(*options.values()) if sum(o.cost for o in p) <= budget]
        sizes = allocate(options, budget)
        chosen = [next(o for o in options[name] if o.size == size) for name, size in sizes.items()]
        assert sum(o.cost for o in chosen) <= budget
        assert sum(o.loss for o in chosen) == pytest.approx(min(sum(o.loss for o in p) for p in picks), abs=2e-2)


def test_allocation_out_of_reach_takes_the_cheapest() -> None:
    assert allocate({"a": [Option((2,), 2.0, 0.0), Option((1,), 1.0, 9.0)]}, 0.5) == {"a": (1,)}


def test_levels_are_aligned_and_fall() -> None:
    assert levels(768, 8, 8, 8) == [768, 672, 576, 480, 384, 288, 192, 96]
    assert levels(64, 8, 4, 8) == [64, 48, 32, 16]
    assert levels(12, 8, 4, 8) == [12, 8]
