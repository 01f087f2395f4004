"""What equalisation and calibration need to know of a linear layer's input: its extremes, a sample of its rows, and
how much each row matters to the prediction.

A row's weight is the squared gradient at the layer's output of a random projection of the logits whose second moment
is the Fisher information of the predicted distribution (the Gauss-Newton form of the KL divergence): with it, the
error of a token that no prediction depends on (patch tokens of the last block, say) counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from act.models import logits

ROWS = 1024  # token vectors kept per layer: 37 MB in all for ViT-Tiny's layers, 260 MB for ViT-B's
_IMAGES = 64  # images whose rows are sampled; the others only count for the extremes
_MICRO = 8  # images at a time while gradients are kept


@dataclass(frozen=True)
class Grid:
    """Bits of weights and activations (0: floating point), and values along K that share a weight scale (0: all)."""

    weight_bits: int
    activation_bits: int
    group_size: int = 0


@dataclass
class InputRows:
    """`largest` [K]: largest absolute value per input channel over all images; `rows` [<= ROWS, K]: a random sample;
    `weights` [<= ROWS]: what each row's output error counts, 1 on average over an image."""

    largest: Tensor
    parts: list[Tensor] = field(default_factory=list)
    weight_parts: list[Tensor] = field(default_factory=list)

    @property
    def rows(self) -> Tensor:
        """The sampled token vectors."""
        return torch.cat(self.parts)

    @property
    def weights(self) -> Tensor:
        """The weight of each of `rows`; all equal where predictions are so certain that no gradient is left."""
        weights = torch.cat(self.weight_parts)
        return weights if bool(weights.any()) else torch.ones_like(weights)


def collect_rows(model: nn.Module, names: Iterable[str], images: Iterable[Tensor], count: int) -> dict[str, InputRows]:
    """One pass over `images` ([B, C, H, W] batches, `count` images in all) with hooks on the named linear layers."""
    collector = _Collector(model, list(names), ROWS / max(1, min(count, _IMAGES)))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)  # gradients at outputs are wanted, those of weights are not
    seen = 0
    try:
        for batch in images:
            sampled = batch[: max(0, _IMAGES - seen)]
            seen += len(batch)
            for start in range(0, len(sampled), _MICRO):
                collector.sample(sampled[start : start + _MICRO])
            if len(sampled) < len(batch):
                with torch.no_grad():
                    model(batch[len(sampled) :])
    finally:
        collector.close()
        for parameter in trainable:
            parameter.requires_grad_(True)
    return collector.found


class _Collector:
    """Hooks on the layers; `sample` runs images forward and backward and keeps rows with their weights."""

    def __init__(self, model: nn.Module, names: Sequence[str], rows_per_image: float) -> None:
        self.model, self.rows_per_image = model, rows_per_image
        self.found: dict[str, InputRows] = {}
        self.generator = torch.Generator().manual_seed(0)
        self.batch = 0  # images of the sampled forward under way; 0: only extremes are taken
        self.handles = [model.get_submodule(name).register_forward_hook(self._hook(name)) for name in names]

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()

    def sample(self, images: Tensor) -> None:
        self.batch = len(images)
        with torch.enable_grad():
            output = logits(self.model(images.detach().requires_grad_()))
            probability = output.detach().softmax(-1)
            noise = probability.sqrt() * torch.randn(output.shape, generator=self.generator).to(output.device).sign()
            direction = noise - probability * noise.sum(-1, keepdim=True)
            (output * direction).sum().backward()  # type: ignore[no-untyped-call]
        self.batch = 0

    def _hook(self, name: str):  # type: ignore[no-untyped-def]
        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            flat = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            largest = flat.abs().amax(0)
            seen = self.found.setdefault(name, InputRows(torch.zeros_like(largest)))
            seen.largest = torch.maximum(seen.largest, largest)
            if self.batch and output.requires_grad:
                share = max(1, round(self.rows_per_image * self.batch))
                picked = torch.randperm(len(flat), generator=self.generator)[:share].to(flat.device)
                seen.parts.append(flat[picked].float())
                batch = self.batch
                weights = seen.weight_parts
                output.register_hook(lambda grad: weights.append(_weights(grad, batch)[picked]))  # type: ignore[no-untyped-call]

        return record


def _weights(grad: Tensor, batch: int) -> Tensor:
    """Squared gradient per row, scaled to a mean of 1 over each image (or over all, where axis 0 is not the images)."""
    squared = grad.detach().float().square().sum(-1)
    shape = squared.shape
    squared = squared.reshape(batch, -1) if shape[0] == batch else squared.reshape(1, -1)
    return (squared / squared.mean(1, keepdim=True).clamp(min=1e-30)).reshape(-1)


def output_error(seen: InputRows, exact: Tensor, factor: Tensor, weight: Tensor, clip: float, grid: Grid) -> float:
    """Weighted mean squared error of `exact` = rows @ weight.T when the rows, divided by `factor` [K], and the weight
    [out, K], multiplied by it, are quantised.

    `clip`: largest activation. Where no activation is quantised, this is what AWQ (arXiv 2306.00978) minimises.
    """
    qw = 2 ** (grid.weight_bits - 1) - 1
    fits = grid.group_size and weight.shape[1] % grid.group_size == 0
    scaled = (weight * factor).reshape(len(weight), -1, grid.group_size if fits else weight.shape[1])
    scale_w = scaled.abs().amax(-1, keepdim=True).clamp(min=1e-8) / qw
    rounded = (scaled / scale_w).round_().mul_(scale_w).flatten(1)
    if grid.activation_bits:
        qa = 2 ** (grid.activation_bits - 1) - 1
        scale_a = max(clip, 1e-8) / qa
        codes = (seen.rows / (factor * scale_a)).round_().clamp_(-qa - 1, qa).mul_(scale_a)
    else:
        codes = seen.rows / factor
    error = codes @ rounded.t() - exact
    return weighted_mean(error.square().mean(1), seen.weights)


def weighted_mean(values: Tensor, weights: Tensor) -> float:
    """Mean of `values` [R] with `weights` [R]."""
    return float((values * weights).sum() / weights.sum().clamp(min=1e-30))
