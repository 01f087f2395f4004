"""Equalisation: move a per-channel factor from an activation into the weights that read it.

A few channels of a LayerNorm's or a GELU's output are far larger than the rest; one scale for the tensor then wastes
the grid on them. Dividing channel k by s_k and multiplying column k of the reading weight by s_k leaves the function
unchanged and the tensor flat (SmoothQuant, arXiv 2211.10438; RepQ-ViT's folding, arXiv 2212.08254). The division is
free where a LayerNorm or the value rows of a fused qkv can absorb it. Elsewhere (after a GELU) it costs one
multiplication, so it is inserted only where it pays by far: pretrained ViTs have one or two MLPs with an input
channel 30 times larger than any other, and below 8 bits most MLPs gain. Which s is best is measured on sampled rows of
the layer's real input.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from act.models import logits
from act.quant.folds import apply_fold, find_folds, fold_tensors
from act.quant.rows import Grid, InputRows, collect_rows, output_error

_TOLERANCE = 1e-3  # relative change of the logits that float32 rounding may cause
_FLOOR = 1e-5
# An inserted multiplication must cut the layer's error by this factor, or by this share of a typical token's output.
# The second is for few bits, where every error is large: under one scale that a single channel sets, all others round
# to zero, and training makes them grow towards a step of the grid that does them no good.
INSERT_GAIN, INSERT_SAVING = 3.0, 0.02
_ALPHAS = (0.25, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
_RANKS = (0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005, 0.0)  # flatten the channels above this rank
_CLIPS = (1.0, 0.7)


@dataclass
class Equalized:
    """What was done: folds, layers that need an inserted factor, folds undone with the reason.

    `error`: per layer, the quantisation error of its output as a share of a typical token's output, with 8 bits where
    its input is to have fewer.
    """

    folded: list[str]
    inserted: dict[str, Tensor]
    undone: list[tuple[str, str]]
    error: dict[str, float]

    def outliers(self, ratio: float) -> list[str]:
        """Layers whose error is more than `ratio` times the median layer's, whatever factor was tried.

        With fewer than 8 bits every layer's error is large, and the ratio would say nothing. Yet one channel of huge
        values is worse there: what its few tokens come from is amplified so much that rounding makes them of others.
        """
        if not self.error or not ratio:
            return []
        limit = ratio * statistics.median(self.error.values())
        return [name for name, error in self.error.items() if error > limit]


@torch.no_grad()
def equalize(model: nn.Module, layers: list[str], images: Iterable[Tensor], count: int, grid: Grid) -> Equalized:
    """Equalise the inputs of the named linear layers in place. `images`: batches [B, C, H, W], `count` in all.

    `Equalized.inserted` maps a layer to the factor [in] that its input has to be multiplied by and its weight's columns
    divided by; neither is done yet.
    """
    first = next(iter(images))[:2]
    folds = [fold for fold in find_folds(model, first) if all(name in layers for name in fold.readers)]
    seen = collect_rows(model, layers, images, count)
    reference = logits(model(first))
    result = Equalized([], {}, [], {})
    free = {name for name in layers if name in seen}
    judge = Grid(8, 8, grid.group_size) if 0 < grid.activation_bits < 8 else grid
    for fold in folds:
        weights, rows = [_weight(model, name) for name in fold.readers], seen[fold.readers[0]]
        factor, gain, error = _best_factor(weights, rows, grid)
        if gain <= 1:
            continue
        if judge is not grid:
            error = _best_factor(weights, rows, judge)[2]
        before = [tensor.clone() for tensor in fold_tensors(model, fold)]
        apply_fold(model, fold, factor)
        change = float((logits(model(first)) - reference).abs().max() / reference.abs().max().clamp(min=_FLOOR))
        if change <= _TOLERANCE:
            result.folded.append(fold.readers[0])
            result.error.update(dict.fromkeys(fold.readers, error))
            free -= set(fold.readers)
            continue
        for tensor, value in zip(fold_tensors(model, fold), before, strict=True):
            tensor.copy_(value)
        result.undone.append((fold.readers[0], f"something besides {', '.join(fold.readers)} reads {fold.producer}"))
    for name in [name for name in layers if name in free]:
        weights, rows = [_weight(model, name)], seen[name]
        factor, gain, error = _best_factor(weights, rows, grid)
        pays = gain >= INSERT_GAIN or error * (gain - 1) >= INSERT_SAVING
        if pays:
            result.inserted[name] = 1 / factor
        if judge is not grid:
            _, gain, error = _best_factor(weights, rows, judge)
        result.error[name] = error if pays else error * max(gain, 1.0)
    return result


def _best_factor(weights: list[Tensor], seen: InputRows, grid: Grid) -> tuple[Tensor, float, float]:
    """The factor s [K] with the smallest output error, by how much it cuts the error of s = 1, and that error as a
    share of the median token's mean square output (the mean would be that of the few tokens with huge values)."""
    largest = seen.largest.clamp(min=_FLOOR)
    weight = torch.cat(weights)
    columns = weight.abs().amax(0).clamp(min=_FLOOR)
    ordered = largest.sort(descending=True).values
    candidates = [(largest / ordered[max(1, int(rank * len(ordered)))]).clamp(min=1) for rank in _RANKS]
    for alpha in _ALPHAS:
        factor = largest**alpha / columns ** (1 - alpha)
        candidates.append(factor / factor.log().mean().exp())  # a common factor would change nothing

    exact = seen.rows @ weight.t()

    def error(factor: Tensor) -> float:
        top = float((largest / factor).max())
        return min(output_error(seen, exact, factor, weight, top * clip, grid) for clip in _CLIPS)

    plain = error(torch.ones_like(largest))
    errors = [error(factor) for factor in candidates]
    best = candidates[errors.index(min(errors))]
    smallest = max(min(errors), 1e-30)
    power = float(exact.square().mean(1).median())
    return best, plain / smallest, smallest / max(power, 1e-30)


def _weight(model: nn.Module, name: str) -> Tensor:
    weight: Tensor = model.get_submodule(name).weight.data  # type: ignore[assignment]
    return weight
