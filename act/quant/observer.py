"""Observers: what a tensor's values look like, and the range that calibration picks from it.

One streaming histogram of absolute values serves every method, so that nothing but 2048 counts per tensor is
kept however many images are seen.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_BINS = 2048


class AbsHistogram:
    """Streaming histogram of |x| in `bins` equal bins; the range doubles (bins merge in pairs) when outgrown."""

    def __init__(self, bins: int = _BINS) -> None:
        self.bins = bins
        self.counts = torch.zeros(bins, dtype=torch.float64)
        self.width = 0.0  # of one bin
        self.largest = 0.0  # exact
        self.smallest = 0.0  # most negative value, exact; 0 when none is negative

    def update(self, x: Tensor) -> None:
        """Add the values of `x` (any shape)."""
        low, high = (float(v) for v in torch.aminmax(x))
        self.smallest = min(self.smallest, low)
        top = max(-low, high)
        if not top:
            return
        self.largest = max(self.largest, top)
        if not self.width:
            self.width = top * 1.0001 / self.bins
        while top > self.width * self.bins:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.cat([merged, torch.zeros_like(merged)])
            self.width *= 2
        self.counts += torch.histc(x.abs().float(), self.bins, 0.0, self.width * self.bins).double()

    @property
    def signed(self) -> bool:
        """Whether any negative value was seen."""
        return self.smallest < 0

    @property
    def centers(self) -> Tensor:
        """Bin centres, float64 [bins]."""
        return (torch.arange(self.bins, dtype=torch.float64) + 0.5) * self.width


def minmax(seen: AbsHistogram, qmax: int) -> float:
    """The largest absolute value."""
    return seen.largest


def percentile(seen: AbsHistogram, qmax: int, percent: float = 99.999) -> float:
    """The value below which `percent` percent of the absolute values lie."""
    total = seen.counts.cumsum(0)
    index = int(torch.searchsorted(total, total[-1] * percent / 100))
    return min(float((index + 1) * seen.width), seen.largest)


def mse(seen: AbsHistogram, qmax: int) -> float:
    """The clip that minimises the mean squared quantisation error of the histogram."""
    centers, counts = seen.centers, seen.counts
    best, best_error = seen.largest, float("inf")
    for fraction in torch.linspace(0.02, 1.0, 99, dtype=torch.float64).tolist():
        clip = seen.largest * fraction
        scale = clip / qmax
        error = float((counts * ((centers / scale).round().clamp(max=qmax) * scale - centers) ** 2).sum())
        if error < best_error:
            best, best_error = clip, error
    return best


def entropy(seen: AbsHistogram, qmax: int) -> float:
    """The clip whose quantised histogram keeps the smallest KL divergence to the original.

    The method of TensorRT's calibrator (8-bit Inference with TensorRT, GTC 2017): clip the histogram at each
    candidate, pour the tail into the last bin, merge into qmax + 1 levels, spread back and compare.
    """
    counts, levels = seen.counts, qmax + 1
    used = int(counts.nonzero().max()) + 1 if bool(counts.any()) else 0
    best, best_divergence = seen.largest, float("inf")
    for end in range(max(levels, used // 8), used + 1, max(1, used // 256)):
        head = counts[:end]
        p = head.clone()
        p[-1] += counts[end:].sum()
        level = (torch.arange(end) * levels // end).clamp(max=levels - 1)
        filled = (head > 0).double()
        sums = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, head)
        cells = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, filled)
        q = filled * (sums / cells.clamp(min=1))[level]
        p, q = p / p.sum(), q / q.sum().clamp(min=1e-300)
        both = (p > 0) & (q > 0)
        # Mass that the quantised histogram cannot represent counts as a large divergence, not as none.
        divergence = float((p[both] * (p[both] / q[both]).log()).sum() + 20.0 * p[(p > 0) & (q == 0)].sum())
        if divergence < best_divergence:
            best, best_divergence = end * seen.width, divergence
    return min(best, seen.largest)


CALIBRATIONS: dict[str, Callable[[AbsHistogram, int], float]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}
