"""Fake quantisation of activations on a CPU, in pieces that stay in its cache.

The fused operator works value by value there, and a chain of whole-tensor operations spends its time on memory. Here
every step of a piece (scale, centre, round, clip) finds it in the cache, and nothing of full size is written but the
result, in the type that the product behind it computes in, and one boolean per value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_PIECE = 1 << 17  # values: 512 KiB in float32


def quantize_pieces(
    x: Tensor,
    scale: Tensor,
    limits: tuple[int, int],
    learn: str,
    factor: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """`(x * factor - shift)` on the integer grid of `scale` (one value), clipped to the codes `limits`.

    x `[..., width]` in any floating type, `factor` `[width]`, `shift` one value; neither gets a gradient. The result
    has the shape of x, in autocast's type if that is on, else in the type of x (float32 at least with a factor or
    shift). Gradients of x and scale: see `act.quant.fake_quant`; `learn` is fixed, pact or lsq.
    """
    result: Tensor = _QuantizePieces.apply(x, scale, factor, shift, limits, learn)
    return result


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _parts(rows: Tensor) -> Iterator[slice]:
    length = max(1, _PIECE // rows.shape[1])
    return (slice(start, start + length) for start in range(0, len(rows), length))


def _ratio(piece: Tensor, inverse: float, factor: Tensor | None, shift: Tensor | None) -> Tensor:
    """The piece in units of the scale, in float32 or more."""
    exact = torch.promote_types(piece.dtype, torch.float32)
    if piece.dtype == exact and factor is None and shift is None:
        return piece * inverse
    ratio = piece.to(exact, copy=True)
    if factor is not None:
        ratio.mul_(factor)
    if shift is not None:
        ratio.sub_(shift)
    return ratio.mul_(inverse)


def _result_type(x: Tensor, scaled: bool) -> torch.dtype:
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return torch.promote_types(x.dtype, torch.float32) if scaled else x.dtype


class _QuantizePieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        factor: Tensor | None,
        shift: Tensor | None,
        limits: tuple[int, int],
        learn: str,
    ) -> Tensor:
        rows, step = _rows(x), float(scale)
        y = rows.new_empty(rows.shape, dtype=_result_type(x, factor is not None or shift is not None))
        inside = rows.new_empty(rows.shape, dtype=torch.bool) if any(ctx.needs_input_grad[:2]) else None
        # The inverse is taken in float32, as the fused operator does: both give the same bits.
        inverse = float(1 / scale.detach().float())
        for part in _parts(rows):
            ratio = _ratio(rows[part], inverse, factor, shift).round_()
            code = ratio.clamp(*limits)
            if inside is not None:
                torch.eq(code, ratio, out=inside[part])
            torch.mul(code, step, out=y[part])
        # PACT needs the result alone, which the product behind it keeps anyway.
        ctx.save_for_backward(scale, factor, shift, inside, y, x if learn == "lsq" else None)
        ctx.limits, ctx.learn, ctx.dtype = limits, learn, x.dtype
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, factor, shift, inside, y, x = ctx.saved_tensors
        rows, inputs = _rows(grad), None if x is None else _rows(x)
        grad_x = rows.new_empty(rows.shape, dtype=ctx.dtype) if ctx.needs_input_grad[0] else None
        total, inverse = 0.0, float(1 / scale.float())
        for part in _parts(rows):
            clipped = rows[part].masked_fill(inside[part], 0)
            if grad_x is not None:
                passed = rows[part] - clipped
                torch.mul(passed, 1.0 if factor is None else factor, out=grad_x[part])
            if ctx.needs_input_grad[1]:
                if inputs is None:
                    total += float(torch.dot(clipped.reshape(-1), y[part].reshape(-1)))
                else:
                    code = _ratio(inputs[part], inverse, factor, shift)
                    error = y[part].float() * inverse - code.masked_fill_(~inside[part], 0)
                    total += float(torch.dot(rows[part].float().reshape(-1), error.reshape(-1)))
        grad_scale = None
        if ctx.needs_input_grad[1]:
            size = (y.numel() * ctx.limits[1]) ** 0.5
            value = total * inverse if inputs is None else total / size
            grad_scale = torch.full_like(scale, value)
        return None if grad_x is None else grad_x.view(grad.shape), grad_scale, None, None, None, None
