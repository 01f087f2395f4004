"""How attention is computed in a training step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


def fused_modules(models: Iterable[nn.Module]) -> list[nn.Module]:
    """The attention modules of timm models that use PyTorch's fused attention."""
    return [module for model in models for module in model.modules() if getattr(module, "fused_attn", None) is True]


@contextmanager
def written_out(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let these modules compute two products and a softmax instead.

    On a CPU PyTorch's fused attention runs its bfloat16 products apart from the library that runs all others on the
    processor's matrix units, and its backward pass takes twice as long as the written-out one. That one keeps the
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
