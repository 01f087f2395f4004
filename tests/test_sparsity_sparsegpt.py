"""The one-shot criteria of a single linear map, against brute force and against simpler methods."""

from __future__ import annotations

from itertools import combinations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from act.sparsity.admm import admm_mask
from act.sparsity.masks import nm_mask, nm_violations
from act.sparsity.sparsegpt import damped, output_error, refit, sparsegpt
from act.sparsity.wanda import wanda_score


def problem(rows: int, k: int, seed: int, samples: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the second moment of strongly correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.logspace(0.5, -1.5, k, dtype=torch.float64)
    mix = torch.randn(k, k, generator=generator, dtype=torch.float64) * spectrum
    inputs = torch.randn(samples or 4 * k, k, generator=generator, dtype=torch.float64) @ mix.T
    return torch.randn(rows, k, generator=generator, dtype=torch.float64), inputs.T @ inputs / len(inputs)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_beats_magnitude_with_and_without_update(n: int, m: int) -> None:
    weight, hessian = problem(24, 64, seed=n + m)
    matrix = damped(hessian, 0.01)
    new, mask = sparsegpt(weight, hessian, n, m, 0.01)
    magnitude = nm_mask(weight.abs(), n, m)
    error = output_error(weight, new, matrix)
    assert nm_violations(new, n, m) == 0
    assert torch.equal(new != 0, mask)
    assert error < 0.9 * output_error(weight, refit(weight, matrix, magnitude), matrix)
    assert error < 0.5 * output_error(weight, weight * magnitude, matrix)


def test_near_the_best_of_all_masks() -> None:
    weight, hessian = problem(6, 12, seed=5)
    matrix = damped(hessian, 0.01)
    new, _ = sparsegpt(weight, hessian, 2, 4, 0.01)
    groups = [[start + i for i in keep] for start in (0,) for keep in combinations(range(4), 2)]
    masks = torch.zeros(len(groups) ** 3, 12, dtype=torch.bool)
    for i, (a, b, c) in enumerate(product(groups, repeat=3)):
        masks[i, [*a, *(j + 4 for j in b), *(j + 8 for j in c)]] = True
    best = 0.0
    for row in weight:
        target = row.expand(len(masks), -1)
        difference = refit(target, matrix, masks) - target
        best += float(((difference @ matrix) * difference).sum(1).min())
    assert best <= output_error(weight, new, matrix) * (1 + 1e-9) <= 1.35 * best


def test_identity_hessian_is_magnitude() -> None:
    weight, _ = problem(16, 32, seed=1)
    new, mask = sparsegpt(weight, torch.eye(32), 2, 4)
    assert torch.equal(mask, nm_mask(weight.abs(), 2, 4))
    torch.testing.assert_close(new, weight * mask)
    never_used, _ = sparsegpt(weight, torch.zeros(32, 32), 2, 4)
    torch.testing.assert_close(never_used, weight * mask)


def test_diagonal_hessian_gives_the_wanda_mask() -> None:
    weight, _ = problem(16, 32, seed=2)
    power = torch.rand(32, dtype=torch.float64) + 0.1
    _, mask = sparsegpt(weight, power.diag(), 2, 4, 1e-9)
    assert torch.equal(mask, nm_mask(wanda_score(weight, power.sqrt()), 2, 4))


def test_admm_beats_the_refitted_magnitude_mask_and_keeps_the_pattern() -> None:
    for seed, (n, m) in enumerate([(2, 4), (1, 4), (4, 8)]):
        weight, hessian = problem(24, 64, seed)
        matrix = damped(hessian, 0.01)
        mask = admm_mask(weight, matrix, n, m)
        assert (mask.reshape(24, -1, m).sum(-1) == n).all()
        magnitude = refit(weight, matrix, nm_mask(weight.abs(), n, m))
        error = output_error(weight, refit(weight, matrix, mask), matrix)
        assert error < 0.9 * output_error(weight, magnitude, matrix)


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 5), groups=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_refit_is_stationary_on_the_mask(seed: int, rows: int, groups: int) -> None:
    weight, hessian = problem(rows, 4 * groups, seed)
    matrix = damped(hessian, 0.01)
    mask = nm_mask(weight.abs(), 2, 4)
    new = refit(weight, matrix, mask)
    assert (new[~mask] == 0).all()
    gradient = ((new - weight) @ matrix)[mask]
    assert gradient.abs().max() < 1e-8 * float(matrix.abs().max() * weight.abs().max())


def test_rank_deficient_and_dead_inputs() -> None:
    weight, hessian = problem(8, 200, seed=3, samples=20)  # two blocks of columns, far fewer samples than columns
    hessian[:, 7] = hessian[7] = 0
    new, _ = sparsegpt(weight.float(), hessian.float(), 2, 4)
    assert new.dtype == torch.float32
    assert new.isfinite().all()
    assert output_error(weight, new, hessian) < 0.1 * output_error(weight, torch.zeros_like(weight), hessian)


def test_wanda_score() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0, 0.5]])
    assert wanda_score(weight, torch.tensor([4.0, 1.0, 0.0, 2.0])).tolist() == [[4.0, 2.0, 0.0, 1.0]]
    assert wanda_score(torch.ones(2, 1, 2, 2), torch.ones(4)).shape == (2, 1, 2, 2)
    with pytest.raises(ValueError, match="input_norm"):
        wanda_score(weight, torch.ones(3))


@pytest.mark.parametrize(
    ("shape", "hessian", "damping", "message"),
    [
        ((4, 6), torch.eye(6), 0.01, "6 inputs"),
        ((4, 8), torch.eye(4), 0.01, "belong together"),
        ((4, 8), torch.eye(8), 0.0, "damping must be positive"),
        ((4, 8), torch.full((8, 8), torch.nan), 0.01, "not finite"),
    ],
)
def test_bad_input_is_refused(shape: tuple[int, int], hessian: torch.Tensor, damping: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sparsegpt(torch.ones(shape), hessian, 2, 4, damping)
