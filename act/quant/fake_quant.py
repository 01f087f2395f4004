"""Fake quantisation: round to the integer grid and back, with learned ranges.

One grid everywhere: zero point 0, one scale per tensor for activations and one per output channel for weights; the
form that ONNX Runtime, OpenVINO and TensorRT all execute on integers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from act.quant.pieces import quantize_pieces

LEARN = ("fixed", "pact", "lsq")
WIDE_BITS = 16  # executed as two int8 products: codes are 256 * high + low, both int8
HIGH = 256
_SMALLEST_SCALE = 1e-8


class _FakeQuantizeTensor(torch.autograd.Function):
    """Per-tensor fake quantisation whose gradient also reaches the scale; `quantize_pieces` is its form for CPUs.

    `pact` (arXiv 1805.06085, made two-sided): the clip a = qmax * scale receives sum(g * sign(x)) over the clipped
    values. `lsq` (arXiv 1902.08153): the scale receives sum(g * (round(x/s) - x/s)) inside and sum(g * q_limit)
    outside, times 1 / sqrt(numel * qmax). Both follow from y and the mask alone:
    inside, g*(y - x)/s; outside, g*y/s.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, qmin: int, qmax: int, learn: str) -> Tensor:
        y: Tensor
        y, inside = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask(x, float(scale), 0, qmin, qmax)
        ctx.learn, ctx.qmax = learn, qmax
        # PACT needs only the output, which the following GEMM keeps anyway: no extra activation is stored.
        ctx.save_for_backward(inside, scale, y, *((x,) if learn == "lsq" else ()))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inside, scale, y, *rest = ctx.saved_tensors
        clipped = grad.masked_fill(inside, 0)
        grad_x = grad - clipped
        grad_scale = None
        if ctx.needs_input_grad[1]:
            if ctx.learn == "lsq":
                total = (grad * y).sum(dtype=torch.float32) - (grad_x * rest[0]).sum(dtype=torch.float32)
                grad_scale = total / scale / (y.numel() * ctx.qmax) ** 0.5
            else:
                grad_scale = torch.dot(clipped.reshape(-1), y.reshape(-1)).float() / scale
            grad_scale = grad_scale.reshape(scale.shape)
        return grad_x, grad_scale, None, None, None


class _RoundClamp(torch.autograd.Function):
    """For weights [..., K] with scales [..., 1] and codes -qmax..qmax; a learned scale gets LSQ's gradient."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
        ratio = w / scale
        inside = ratio.abs() <= qmax
        learned = ctx.needs_input_grad[1]
        code = ratio.round() if learned else ratio.round_()
        code.clamp_(qmin, qmax)
        ctx.save_for_backward(inside, *((ratio, code) if learned else ()))
        ctx.qmax = qmax
        return code * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inside, *learned = ctx.saved_tensors
        if not learned:
            return grad.masked_fill(~inside, 0), None, None, None
        ratio, code = learned
        per_value = torch.where(inside, code - ratio, code) * grad
        step = per_value.sum(dim=-1, keepdim=True) / (grad.shape[-1] * ctx.qmax) ** 0.5
        return grad * inside, step, None, None


class FakeQuantize(nn.Module):
    """Simulates an integer tensor of `bits` bits (2 to 8, or 16 for activations).

    `channels`: None for one scale (activations), else the length of axis 0, one scale each (weights, whose range is
    -qmax..qmax); `groups` of equal size along the other axes have scales of their own. `signed=False` promises a
    non-negative input (attention's probabilities), for which the whole range of codes is used.
    `learn`: fixed (a buffer), pact or lsq (a parameter). What is learned is the `scale` that is exported.
    While `observer` is set the input passes unchanged and is only observed.
    """

    def __init__(
        self, bits: int, channels: int | None = None, signed: bool = True, learn: str = "fixed", groups: int = 1
    ) -> None:
        super().__init__()
        if learn not in LEARN:
            raise ValueError(f"learn={learn!r}; allowed: {', '.join(LEARN)}")
        wide = bits == WIDE_BITS and channels is None
        if not 2 <= bits <= 8 and not wide:
            raise ValueError(f"bits={bits}; allowed: 2 to 8, for activations also {WIDE_BITS}")
        # Half of 16 bits is more than enough for an input without negative values.
        self.bits, self.channels, self.signed, self.learn = bits, channels, signed or wide, learn
        self.groups = groups
        shape = () if channels is None else (channels,) if groups == 1 else (channels, groups)
        start = torch.ones(shape)
        if learn == "fixed":
            self.register_buffer("scale", start)
        else:
            self.scale = nn.Parameter(start)
        self.enabled = True
        self.observer: Any = None

    @property
    def qmax(self) -> int:
        """Largest integer code."""
        if self.bits == WIDE_BITS:
            return HIGH * 127 + 127
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def qmin(self) -> int:
        """Smallest integer code; weights use the narrow range so that no code lacks its negative."""
        if not self.signed:
            return 0
        if self.bits == WIDE_BITS:
            return -(HIGH * 128 + 128)
        return -self.qmax if self.channels is not None else -self.qmax - 1

    def set_range(self, largest: Tensor) -> None:
        """Set the scale so that `largest` (shape of `scale`, >= 0) becomes the largest code."""
        with torch.no_grad():
            self.scale.copy_((largest / self.qmax).clamp(min=_SMALLEST_SCALE))

    def codes(self, x: Tensor) -> Tensor:
        """The codes of `x` (same shape), int8 or for 8 unsigned bits uint8, as an exported file has them."""
        values, scale = x.detach(), self.scale.detach()
        if self.channels is not None:
            values, scale = self.rows(values), scale.unsqueeze(-1)
        codes = (values / scale).round().clamp(self.qmin, self.qmax)
        return codes.to(self.code_type).reshape(x.shape)

    @property
    def code_type(self) -> torch.dtype:
        """The integers that hold the codes."""
        if self.bits == WIDE_BITS:
            return torch.int32
        return torch.int8 if self.qmax <= 127 else torch.uint8

    def rows(self, x: Tensor) -> Tensor:
        """A weight [channels, ...] as [channels, K] or [channels, groups, K / groups]: one scale per row."""
        return x.reshape(*self.scale.shape, -1)

    def forward(self, x: Tensor, factor: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """`x * factor - shift` (each where given) rounded to the grid, in the shape of x; straight-through gradients.

        For activations on a CPU the result has autocast's type if that is on.
        """
        if self.channels is None and self.enabled and self.observer is None and x.device.type == "cpu":
            return quantize_pieces(x, self.scale, (self.qmin, self.qmax), self.learn, factor, shift)
        x = x if factor is None else x * factor
        x = x if shift is None else x - shift
        if self.observer is not None:
            self.observer.update(x.detach())
            return x
        if not self.enabled:
            return x
        if self.channels is not None:
            rounded: Tensor = _RoundClamp.apply(self.rows(x), self.scale.unsqueeze(-1), self.qmin, self.qmax)
            return rounded.reshape(x.shape)
        if torch.is_grad_enabled() and (x.requires_grad or self.scale.requires_grad):
            return _FakeQuantizeTensor.apply(  # type: ignore[no-any-return]
                x, self.scale, self.qmin, self.qmax, self.learn
            )
        return torch.fake_quantize_per_tensor_affine(x, float(self.scale), 0, self.qmin, self.qmax)

    def extra_repr(self) -> str:
        shown = f"bits={self.bits}, channels={self.channels}, signed={self.signed}, learn={self.learn}"
        return shown if self.groups == 1 else f"{shown}, groups={self.groups}"


def weight_quantizer(scale: Tensor, bits: int) -> FakeQuantize:
    """The quantiser of a weight with these scales, [channels] or [channels, groups]."""
    quantizer = FakeQuantize(bits, channels=len(scale), groups=scale.shape[1] if scale.dim() == 2 else 1)
    quantizer.load_state_dict({"scale": scale})
    return quantizer
