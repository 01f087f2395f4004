"""Observers: the streaming histogram, and the range each calibration method picks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from act.quant.observer import CALIBRATIONS, AbsHistogram, entropy, minmax, mse, percentile


def seen(*batches: torch.Tensor) -> AbsHistogram:
    histogram = AbsHistogram()
    for batch in batches:
        histogram.update(batch)
    return histogram


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), st.integers(0, 1000))
def test_streaming_counts_every_value_whatever_the_order_of_ranges(scales: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(200, generator=generator) * scale for scale in scales]
    histogram = seen(*batches)
    everything = torch.cat(batches).abs()
    assert int(histogram.counts.sum()) == everything.numel()
    assert histogram.largest == pytest.approx(float(everything.max()))
    middle = float(everything.double().quantile(0.5))
    below = float(histogram.counts[histogram.centers < middle].sum()) / everything.numel()
    inside_one_bin = float(((everything - middle).abs() <= histogram.width).double().mean())
    assert abs(below - 0.5) <= inside_one_bin + 0.01


def test_percentile_finds_the_quantile() -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    assert percentile(seen(x), 127, 99.0) == pytest.approx(float(x.abs().double().quantile(0.99)), rel=0.01)
    assert percentile(seen(x), 127, 100.0) == pytest.approx(float(x.abs().max()), rel=1e-3)


def test_mse_is_the_best_clip_of_a_brute_force_search() -> None:
    x = torch.distributions.Laplace(0.0, 1.0).sample((50_000,))
    for qmax in (7, 127):
        clip = mse(seen(x), qmax)

        def error(c: float, qmax: int = qmax) -> float:
            scale, exact = c / qmax, x.abs().double()
            return float(((exact / scale).round().clamp(max=qmax) * scale - exact).square().mean())

        best = min(error(float(x.abs().max()) * f / 100) for f in range(2, 101))
        assert error(clip) <= best * 1.02


def test_outliers_shrink_the_clip_except_for_minmax() -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    x[0] = 30.0
    histogram = seen(x)
    assert minmax(histogram, 7) == 30.0
    for method in (mse, entropy, percentile):
        assert method(histogram, 7) < 15.0, method.__name__


@pytest.mark.parametrize("method", sorted(CALIBRATIONS))
def test_degenerate_tensors_give_a_finite_range(method: str) -> None:
    for x in (torch.zeros(100), torch.ones(100), torch.full((100,), -3.0)):
        clip = CALIBRATIONS[method](seen(x), 127)
        assert 0 <= clip <= float(x.abs().max()) + 1e-6


def test_sign_is_noticed() -> None:
    assert seen(torch.tensor([0.0, 2.0, -0.1])).signed
    assert not seen(torch.tensor([0.0, 2.0])).signed
