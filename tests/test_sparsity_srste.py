"""SR-STE against the formula of arXiv 2102.04010."""

from __future__ import annotations

import pytest
import torch

from act.sparsity.masks import flip_rate, nm_mask
from act.sparsity.srste import StraightThrough, decay_pruned


@pytest.mark.parametrize("decay", [0.0, 2e-4, 0.5, -0.1])
def test_forward_and_backward_follow_the_formula(decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    inputs = torch.randn(5, 8, dtype=torch.float64, generator=generator)
    target = torch.randn(5, 6, dtype=torch.float64, generator=generator)
    mask = nm_mask(weight.detach().abs(), 2, 4)
    masked = StraightThrough.apply(weight, mask)
    assert torch.equal(masked, weight.detach() * mask)
    (0.5 * (inputs @ masked.T - target).square().sum()).backward()
    decay_pruned(weight, mask, decay)
    dense = weight.detach()
    grad_of_masked = (inputs @ (dense * mask).T - target).T @ inputs
    expected = grad_of_masked + decay * (1 - mask.double()) * dense
    torch.testing.assert_close(weight.grad, expected, rtol=1e-12, atol=1e-12)


def test_decay_lowers_the_flip_rate() -> None:
    flips = {}
    for decay in (0.0, 2.0):
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(16, 32, generator=generator).requires_grad_()
        mask, total = nm_mask(weight.detach().abs(), 2, 4), 0.0
        for _ in range(60):
            inputs = torch.randn(32, 32, generator=generator)
            (inputs @ StraightThrough.apply(weight, mask).T - inputs[:, :16]).square().mean().backward()
            decay_pruned(weight, mask, decay)
            with torch.no_grad():
                weight -= 0.2 * (weight.grad + 0.3 * torch.randn(weight.shape, generator=generator))
            weight.grad = None
            new = nm_mask(weight.detach().abs(), 2, 4)
            total += flip_rate(mask, new)
            mask = new
        flips[decay] = total
    assert flips[2.0] < 0.5 * flips[0.0]


def test_a_wrong_mask_is_refused() -> None:
    for mask in (torch.ones(2, 4), torch.ones(4, 2, dtype=torch.bool)):
        with pytest.raises(ValueError, match="mask must be boolean"):
            StraightThrough.apply(torch.ones(2, 4), mask)


def test_half_precision_keeps_its_dtype() -> None:
    weight = torch.ones(2, 4, dtype=torch.bfloat16, requires_grad=True)
    mask = nm_mask(weight.detach(), 2, 4)
    StraightThrough.apply(weight, mask).sum().backward()
    decay_pruned(weight, mask, 0.25)
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16
    assert weight.grad.tolist() == [[1, 1, 1.25, 1.25]] * 2
