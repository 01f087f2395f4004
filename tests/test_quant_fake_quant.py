"""Fake quantisation against float64 formulas: values, straight-through masks, PACT and LSQ gradients."""

import pytest
import torch
from torch import Tensor

from act.quant.fake_quant import FakeQuantize


def grid(x: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
    return (x.double() / scale.double()).round().clamp(qmin, qmax) * scale.double()


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_values_lie_on_the_grid(bits: int, signed: bool) -> None:
    quantizer = FakeQuantize(bits, signed=signed)
    quantizer.set_range(torch.tensor(1.5))
    x = values(64, 32) if signed else values(64, 32).abs()
    expected = grid(x, quantizer.scale, quantizer.qmin, quantizer.qmax)
    assert torch.allclose(quantizer(x).double(), expected, atol=1e-6)
    assert len(torch.unique(quantizer.codes(x))) <= 2**bits


def test_weights_have_one_scale_per_row_and_a_symmetric_range() -> None:
    weight = values(6, 40) * torch.logspace(-2, 1, 6)[:, None]
    quantizer = FakeQuantize(8, channels=6)
    quantizer.set_range(weight.abs().amax(1))
    error = (quantizer(weight) - weight).abs().amax(1)
    assert bool((error <= quantizer.scale / 2 * 1.0001).all())
    codes = quantizer.codes(weight)
    assert int(codes.min()) >= -127 and int(codes.abs().amax(1).min()) == 127
    assert torch.equal(quantizer(weight), codes * quantizer.scale[:, None])


def test_training_and_evaluation_give_the_same_values() -> None:
    for learn in ("fixed", "pact", "lsq"):
        quantizer = FakeQuantize(8, learn=learn)
        quantizer.set_range(torch.tensor(2.0))
        x = values(16, 24).requires_grad_()
        with torch.no_grad():
            expected = quantizer(x)
        assert torch.equal(quantizer(x), expected), learn


def test_pact_gradient_is_the_sum_over_clipped_values() -> None:
    quantizer = FakeQuantize(4, learn="pact")
    quantizer.set_range(torch.tensor(0.7))
    x, upstream = values(50, 20).requires_grad_(), values(50, 20, seed=1)
    quantizer(x).backward(upstream)
    code = (x.detach().double() / quantizer.scale.double()).round()
    low, high = code < quantizer.qmin, code > quantizer.qmax
    # dy/dscale is the limit itself where the value is clipped, 0 elsewhere.
    expected = (upstream.double() * (high * quantizer.qmax + low * quantizer.qmin)).sum()
    assert torch.allclose(quantizer.scale.grad.double(), expected, rtol=1e-5)  # type: ignore[union-attr]
    assert x.grad is not None
    assert torch.equal(x.grad, upstream * ~(low | high))


def test_lsq_gradient_follows_the_paper() -> None:
    quantizer = FakeQuantize(4, learn="lsq")
    quantizer.set_range(torch.tensor(0.7))
    x, upstream = values(50, 20).requires_grad_(), values(50, 20, seed=1)
    quantizer(x).backward(upstream)
    ratio = x.detach().double() / quantizer.scale.double()
    code = ratio.round()
    inside = (code >= quantizer.qmin) & (code <= quantizer.qmax)
    per_value = torch.where(inside, code - ratio, code.clamp(quantizer.qmin, quantizer.qmax))
    expected = (upstream.double() * per_value).sum() / (x.numel() * quantizer.qmax) ** 0.5
    assert torch.allclose(quantizer.scale.grad.double(), expected, rtol=1e-4)  # type: ignore[union-attr]


def test_lsq_weight_gradient_follows_the_paper_per_channel() -> None:
    quantizer = FakeQuantize(3, channels=5, learn="lsq")
    weight, upstream = values(5, 30).requires_grad_(), values(5, 30, seed=1)
    quantizer.set_range(weight.detach().abs().amax(1) * 0.6)
    quantizer(weight).backward(upstream)
    ratio = weight.detach().double() / quantizer.scale.detach().double()[:, None]
    inside = (ratio >= quantizer.qmin) & (ratio <= quantizer.qmax)
    code = ratio.round().clamp(quantizer.qmin, quantizer.qmax)
    per_value = torch.where(inside, code - ratio, code) * upstream.double()
    expected = per_value.sum(1) / (30 * quantizer.qmax) ** 0.5
    assert torch.allclose(quantizer.scale.grad.double(), expected, rtol=1e-4, atol=1e-7)  # type: ignore[union-attr]


def test_zero_stays_zero_whatever_the_scale() -> None:
    x = values(8, 8) * (values(8, 8, seed=3) > 0)
    quantizer = FakeQuantize(8, channels=8)
    quantizer.set_range(torch.rand(8) + 0.1)
    assert bool((quantizer(x)[x == 0] == 0).all())


@pytest.mark.parametrize(("bits", "learn"), [(1, "fixed"), (9, "fixed"), (8, "nonsense")])
def test_impossible_quantisers_are_refused(bits: int, learn: str) -> None:
    with pytest.raises(ValueError, match="allowed"):
        FakeQuantize(bits, learn=learn)
