"""Fake quantisation of activations on a CPU, in pieces that stay in its cache.

The fused operator works value by value there, and a chain of whole-tensor operations spends its time on memory. Here
every step of a piece (scale, centre, round, clip) finds it in the cache, and nothing of full size is written but the
result, in the type that the product behind it computes in. For the gradients the few clipped values are remembered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_PIECE = 1 << 18  # values: 1 MiB in float32


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
        flat, learns = y.reshape(-1), any(ctx.needs_input_grad[:2])
        slopes = torch.empty_like(y) if learn == "lsq" and learns else None
        # The inverse is taken in float32, as the fused operator does: both give the same bits.
        inverse = float(1 / scale.detach().float())
        clipped = []
        for part in _parts(rows):
            ratio = _ratio(rows[part], inverse, factor, shift)
            rounded = ratio.round() if slopes is not None else ratio.round_()
            code = rounded.clamp(*limits)
            if slopes is not None:
                slopes[part] = _slope(ratio, rounded, code)
            elif learns:
                beyond = (code != rounded).reshape(-1).nonzero().squeeze(1)
                clipped.append(beyond.add_(part.start * rows.shape[1]))
            y[part] = code.mul_(step)
        ctx.limits, ctx.dtype = limits, x.dtype
        if slopes is not None:
            ctx.save_for_backward(scale, factor, slopes)
        elif learns:
            # PACT needs the clipped values alone; they are few.
            where = torch.cat(clipped) if clipped else rows.new_empty(0, dtype=torch.long)
            ctx.save_for_backward(scale, factor, flat[where], where)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, factor, kept, *where = ctx.saved_tensors
        rows = _rows(grad)
        grad_x = grad_scale = None
        if ctx.needs_input_grad[0]:
            # Slopes are at most 1/2 inside and whole numbers beyond.
            inside = rows if where else torch.ops.aten.hardtanh_backward(rows, kept, -0.75, 0.75)
            grad_x = (inside if factor is None else inside * factor).to(ctx.dtype, copy=bool(where) and factor is None)
            for index in where:
                grad_x.view(-1)[index] = 0
            grad_x = grad_x.view(grad.shape)
        if ctx.needs_input_grad[1]:
            if where:
                total = _dot(rows.reshape(-1)[where[0]], kept) / float(scale)
            else:
                total = sum(_dot(rows[part], kept[part]) for part in _parts(rows))
                total /= (kept.numel() * ctx.limits[1]) ** 0.5
            grad_scale = torch.full_like(scale, total)
        return grad_x, grad_scale, None, None, None, None


def _slope(ratio: Tensor, rounded: Tensor, code: Tensor) -> Tensor:
    """What a value's result changes with the scale: code - ratio, and where it was clipped the code. Takes `ratio`."""
    # Arithmetic alone: a CPU takes five times as long to compare floats, and longer to choose by what was compared.
    inside = (rounded - code).abs_().clamp_(max=1).neg_().add_(1)
    return code - ratio.mul_(inside)


def _dot(a: Tensor, b: Tensor) -> float:
    """Their sum of products in float32."""
    return float(torch.dot(a.reshape(-1).float(), b.reshape(-1).float()))
