"""What equalisation and calibration need to know of a linear layer's input: its extremes and a sample of its rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

ROWS = 1024  # token vectors kept per layer: 37 MB in all for ViT-Tiny's layers, 260 MB for ViT-B's


@dataclass
class InputRows:
    """`largest` [K]: largest absolute value per input channel over all images; `rows` [<= ROWS, K]: a random sample."""

    largest: Tensor
    parts: list[Tensor] = field(default_factory=list)

    @property
    def rows(self) -> Tensor:
        """The sampled token vectors."""
        return torch.cat(self.parts)


@torch.no_grad()
def collect_rows(model: nn.Module, names: Iterable[str], images: Iterable[Tensor], count: int) -> dict[str, InputRows]:
    """One pass over `images` ([B, C, H, W] batches, `count` images in all) with hooks on the named linear layers."""
    found: dict[str, InputRows] = {}
    generator = torch.Generator().manual_seed(0)

    def hook(name: str, share: list[int]):  # type: ignore[no-untyped-def]
        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            flat = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            largest = flat.abs().amax(0)
            seen = found.setdefault(name, InputRows(torch.zeros_like(largest)))
            seen.largest = torch.maximum(seen.largest, largest)
            picked = torch.randperm(len(flat), generator=generator)[: share[0]]
            seen.parts.append(flat[picked.to(flat.device)].float())

        return record

    share = [ROWS]
    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name, share)) for name in names]
    try:
        for batch in images:
            share[0] = max(1, ROWS * len(batch) // max(1, count))
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def output_error(rows: Tensor, weight: Tensor, clip: float, bits: tuple[int, int] = (8, 8)) -> float:
    """Mean squared error of rows @ weight.T when both are quantised. `rows` [R, K], `weight` [out, K].

    `clip`: largest activation; `bits`: of weight and activation. Weights have one scale per row.
    """
    qw, qa = (2 ** (b - 1) - 1 for b in bits)
    scale_w = weight.abs().amax(1, keepdim=True).clamp(min=1e-8) / qw
    scale_a = max(clip, 1e-8) / qa
    codes = (rows / scale_a).round_().clamp_(-qa - 1, qa).mul_(scale_a)
    # Sum of both errors in one product: x w - x' w' = (x - x') w + x' (w - w').
    rounded = (weight / scale_w).round_().mul_(scale_w)
    return float((codes @ rounded.t() - rows @ weight.t()).square().mean())
