"""N:M masks against a brute-force float64 oracle, and their properties."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from act.sparsity.masks import flip_rate, nm_mask, nm_violations, parse_pattern

PATTERNS = [(2, 4), (1, 4), (4, 8), (2, 8), (3, 16)]


def oracle(score: torch.Tensor, n: int, m: int) -> np.ndarray:
    """Group by group: of all n-subsets, the first in lexicographic order among those with the largest sum."""
    last = np.moveaxis(score.double().numpy(), 1, -1)  # input channels innermost
    rows = last.reshape(len(last), -1)
    mask = np.zeros(rows.shape, bool)
    for row, start in itertools.product(range(rows.shape[0]), range(0, rows.shape[1], m)):
        group = rows[row, start : start + m]
        best = max(itertools.combinations(range(m), n), key=lambda pick: (group[list(pick)].sum(), [-i for i in pick]))
        mask[row, [start + i for i in best]] = True
    return np.moveaxis(mask.reshape(last.shape), -1, 1)


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_matches_brute_force(n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(n * 100 + m)
    for shape in [(5, 48), (3, 16, 2, 3), (1, 16)]:
        score = torch.randn(shape, generator=generator).abs()
        assert (nm_mask(score, n, m).numpy() == oracle(score, n, m)).all()


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_ties_keep_the_lower_index(n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(1)
    score = torch.randint(0, 3, (20, 3 * m), generator=generator).float()  # exact sums, frequent ties
    assert (nm_mask(score, n, m).numpy() == oracle(score, n, m)).all()
    assert nm_mask(torch.zeros(1, m), n, m).tolist() == [[True] * n + [False] * (m - n)]


def test_pairs_are_kept_by_their_sum_and_counted_as_one() -> None:
    score = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(4)).abs()
    mask = nm_mask(score.flatten(1), 4, 8, 2)
    pairs = mask.view(5, 3, 4, 2)
    assert torch.equal(pairs[..., 0], pairs[..., 1])
    assert torch.equal(pairs[..., 0], nm_mask(score.view(5, 12, 2).sum(-1), 2, 4).view(5, 3, 4))
    assert nm_violations(mask.float(), 4, 8, 2) == 0
    single = torch.tensor([[1.0, 0, 1, 0, 1, 0, 0, 0]])  # fine as 4:8, three pairs all the same
    assert nm_violations(single, 4, 8) == 0 and nm_violations(single, 4, 8, 2) == 1
    with pytest.raises(ValueError, match="whole units"):
        nm_mask(score.flatten(1), 3, 8, 2)


def test_groups_of_a_convolution_are_input_channels_at_one_position() -> None:
    """The order TensorRT wants: axis 1 at every position of the kernel."""
    score = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(3))
    mask = nm_mask(score, 2, 4)
    assert (mask.reshape(2, 2, 4, 3, 3).sum(2) == 2).all()
    assert nm_violations(score * mask, 2, 4) == 0
    along_kernel = (torch.arange(32).reshape(1, 8, 2, 2) % 4 < 2).float()
    assert nm_violations(along_kernel, 2, 4) > 0


@given(
    pattern=st.sampled_from(PATTERNS),
    rows=st.integers(1, 6),
    groups=st.integers(1, 6),
    seed=st.integers(0, 2**31 - 1),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int8]),
)
@settings(max_examples=80, deadline=None)
def test_properties(pattern: tuple[int, int], rows: int, groups: int, seed: int, dtype: torch.dtype) -> None:
    n, m = pattern
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, groups * m, generator=generator) * 40).round().to(dtype)
    mask = nm_mask(weight, n, m)
    by_group = mask.reshape(rows, groups, m)
    assert mask.dtype == torch.bool
    assert (by_group.sum(-1) == n).all()
    grouped = weight.double().reshape(rows, groups, m)
    lowest_kept = grouped.masked_fill(~by_group, torch.inf).amin(-1)
    highest_dropped = grouped.masked_fill(by_group, -torch.inf).amax(-1)
    assert (lowest_kept >= highest_dropped).all()
    assert nm_violations(weight * mask, n, m) == 0
    assert torch.equal(nm_mask(weight.masked_fill(~mask, -128 if dtype == torch.int8 else -1e4), n, m), mask)


def test_nan_is_kept_and_the_pattern_holds() -> None:
    score = torch.tensor([[1.0, torch.nan, 3.0, torch.nan, torch.nan, torch.nan, torch.nan, 9.0]])
    assert nm_mask(score, 2, 4).tolist() == [[False, True, False, True, True, True, False, False]]


def test_violations_count_groups_and_see_one_weight() -> None:
    weight = torch.zeros(4, 8, dtype=torch.int8)
    weight[:, [0, 3, 4, 5]] = torch.tensor([1, -1, 127, -128], dtype=torch.int8)
    assert nm_violations(weight, 2, 4) == 0
    weight[2, 7] = 1
    assert nm_violations(weight, 2, 4) == 1
    assert nm_violations(torch.ones(3, 4, 2, 1), 2, 4) == 6


@pytest.mark.parametrize("call", [nm_mask, nm_violations])
def test_undivisible_k_is_refused(call: object) -> None:
    for bad in (torch.ones(3, 6), torch.ones(8), torch.ones(2, 0)):
        with pytest.raises(ValueError, match=r"multiple of|two axes"):
            call(bad, 2, 4)  # type: ignore[operator]
    with pytest.raises(ValueError, match="N:M pattern"):
        call(torch.ones(1, 4), 5, 4)  # type: ignore[operator]


def test_flip_rate() -> None:
    old = torch.tensor([[True, True, False, False]])
    assert flip_rate(old, old) == 0.0
    assert flip_rate(old, torch.tensor([[True, False, True, False]])) == 0.5
    assert flip_rate(old, ~old) == 1.0
    with pytest.raises(ValueError, match="different shapes"):
        flip_rate(old, old[:, :2])


@given(n=st.integers(1, 30), extra=st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_parse_pattern_round_trip(n: int, extra: int) -> None:
    assert parse_pattern(f" {n}:{n + extra} ") == (n, n + extra, 1)
    pairs = parse_pattern(f"{2 * n}:{2 * (n + extra)} pairs")
    assert pairs == (2 * n, 2 * (n + extra), 2) and parse_pattern(str(pairs)) == pairs


@pytest.mark.parametrize(
    "text",
    ["", "2", "2:", "2/4", "4:2", "4:4", "0:4", "-2:4", "2:4:8", "3:8 pairs", "1:4 pairs", "4:8 pair"],
)
def test_bad_patterns_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="sparsity pattern"):
        parse_pattern(text)
