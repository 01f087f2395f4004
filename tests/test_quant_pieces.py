"""Quantising in pieces: the bits of the fused operator, and the gradients of the whole-tensor formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from act.quant import pieces
from act.quant.fake_quant import _FakeQuantizeTensor
from act.quant.pieces import quantize_pieces

SCALE = torch.tensor(0.013)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_PIECE", 100)  # several pieces of uneven length


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limits", [(-128, 127), (0, 127), (-8, 7)])
def test_values_are_those_of_the_fused_operator(dtype: torch.dtype, limits: tuple[int, int]) -> None:
    x = values(3, 7, 24).to(dtype)
    expected = torch.fake_quantize_per_tensor_affine(x, float(SCALE), 0, *limits)
    assert torch.equal(quantize_pieces(x, SCALE, limits, "fixed"), expected)
    turned = x.transpose(1, 2)
    assert torch.equal(quantize_pieces(turned, SCALE, limits, "fixed"), expected.transpose(1, 2))
    flat = x[0, 0]
    assert torch.equal(quantize_pieces(flat, SCALE, limits, "fixed"), expected[0, 0])


@pytest.mark.parametrize("learn", ["fixed", "pact", "lsq"])
def test_gradients_are_those_of_whole_tensors(learn: str) -> None:
    upstream, gradients = values(5, 9, 16, seed=1), []
    for whole in (True, False):
        x = values(5, 9, 16).requires_grad_()
        scale = SCALE.clone().requires_grad_(learn != "fixed")
        if whole:
            y = _FakeQuantizeTensor.apply(x, scale, -128, 127, learn)
        else:
            y = quantize_pieces(x, scale, (-128, 127), learn)
        y.backward(upstream)
        gradients.append((x.grad, scale.grad))
    (x_whole, scale_whole), (x_pieces, scale_pieces) = gradients
    assert torch.equal(x_whole, x_pieces)
    assert scale_whole is scale_pieces is None or torch.allclose(scale_whole, scale_pieces, rtol=1e-4)


def test_factor_and_shift_are_part_of_it() -> None:
    factor, shift = values(16, seed=2).abs() + 0.5, torch.tensor(0.3)
    x, upstream = values(40, 16).requires_grad_(), values(40, 16, seed=1)
    scale = SCALE.clone().requires_grad_()
    quantize_pieces(x, scale, (-128, 127), "pact", factor, shift).backward(upstream)
    found = x.grad, scale.grad
    x.grad = scale.grad = None
    _FakeQuantizeTensor.apply(x * factor - shift, scale, -128, 127, "pact").backward(upstream)
    assert found[0] is not None and found[1] is not None
    assert torch.allclose(found[0], x.grad, rtol=1e-6) and torch.allclose(found[1], scale.grad, rtol=1e-4)


def test_autocast_decides_the_type() -> None:
    x = values(20, 16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = quantize_pieces(x, SCALE, (-128, 127), "fixed")
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, quantize_pieces(x, SCALE, (-128, 127), "fixed").bfloat16())
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
