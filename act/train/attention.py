"""How attention is computed in a training step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


def to_write_out(models: Iterable[nn.Module], device: torch.device, half: bool) -> list[nn.Module]:
    """The attention modules of timm models that training writes out: those that would use PyTorch's fused attention in
    bfloat16 (`half`) on a CPU."""
    if device.type != "cpu" or not half:
        return []
    return [module for model in models for module in model.modules() if getattr(module, "fused_attn", None) is True]


@contextmanager
def written_out(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let these modules compute two products and a softmax instead.

    On a CPU PyTorch's fused attention runs its bfloat16 products apart from the library that runs all others on the
    processor's matrix units; written out, a distilled step of ViT-Tiny took 0.82 of the time (in turns). It keeps the
    probabilities of every layer for the backward pass, [batch, heads, tokens, tokens].
    """
    switched = list(modules)
    for module in switched:
        module.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in switched:
            module.fused_attn = True  # type: ignore[assignment]
