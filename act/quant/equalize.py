"""Equalisation: move a per-channel factor from an activation into the weights that read it.

A LayerNorm's output has a few channels far larger than the rest; one scale for the tensor then wastes the grid on
them. Dividing the norm's gain and bias by s and multiplying the reading layer's columns by s leaves the function
unchanged and the tensor flat (SmoothQuant, arXiv 2211.10438; the same folding as RepQ-ViT, arXiv 2212.08254).
The value rows of a fused qkv and the columns of the projection after attention are treated alike.
Pairs are found by running the model; a fold that changes the output is undone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from act.models import logits

_TOLERANCE = 1e-3  # relative change of the logits that float32 rounding may cause
_FLOOR = 1e-5


@dataclass(frozen=True)
class Fold:
    """`producer` rows (LayerNorm channels, or the last rows of a linear layer) feed the columns of `readers`."""

    producer: str
    readers: tuple[str, ...]


def find_folds(model: nn.Module, image: Tensor) -> list[Fold]:
    """Foldable pairs, from one forward of `image` [B, C, H, W]."""
    outputs: list[tuple[str, Tensor]] = []
    readers: dict[int, list[str]] = {}
    keep: list[Tensor] = []  # holding every tensor keeps its address its own

    def norm_hook(name: str):  # type: ignore[no-untyped-def]
        def record(module: nn.Module, inputs: object, output: Tensor) -> None:
            outputs.append((name, output))

        return record

    def linear_hook(name: str):  # type: ignore[no-untyped-def]
        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            keep.append(inputs[0])
            readers.setdefault(inputs[0].data_ptr(), []).append(name)

        return record

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            handles.append(module.register_forward_hook(norm_hook(name)))
        elif isinstance(module, nn.Linear):
            handles.append(module.register_forward_pre_hook(linear_hook(name)))
    try:
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    folds = [Fold(name, tuple(readers[y.data_ptr()])) for name, y in outputs if y.data_ptr() in readers]
    for name, module in model.named_modules():
        qkv, proj = getattr(module, "qkv", None), getattr(module, "proj", None)
        if isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear) and qkv.out_features >= 3 * proj.in_features:
            folds.append(Fold(f"{name}.qkv", (f"{name}.proj",)))
    return folds


@torch.no_grad()
def equalize(model: nn.Module, images: Iterable[Tensor], alpha: float) -> tuple[list[Fold], list[tuple[Fold, str]]]:
    """Fold s = max|x|^alpha / max|w|^(1-alpha) into every pair; returns the folds done and those undone with the reason.

    `images`: calibration batches [B, C, H, W]; `alpha` in 0..1: the share of the difficulty that moves to the weights.
    """
    first = next(iter(images))[:2]
    folds = find_folds(model, first)
    largest = _largest_inputs(model, {fold.readers[0] for fold in folds}, images)
    reference = logits(model(first))
    done, undone = [], []
    for fold in folds:
        saved = _parameters(model, fold)
        before = [p.clone() for p in saved]
        _apply(model, fold, largest[fold.readers[0]], alpha)
        change = float((logits(model(first)) - reference).abs().max() / reference.abs().max().clamp(min=_FLOOR))
        if change <= _TOLERANCE:
            done.append(fold)
            continue
        for parameter, value in zip(saved, before, strict=True):
            parameter.copy_(value)
        undone.append((fold, f"folding changes the output by {change:.1e}: something else reads {fold.producer}"))
    return done, undone


def _apply(model: nn.Module, fold: Fold, activation: Tensor, alpha: float) -> None:
    readers = [model.get_submodule(name) for name in fold.readers]
    weights: list[Tensor] = [reader.weight for reader in readers]  # type: ignore[misc]
    weight = torch.stack([w.abs().amax(0) for w in weights]).amax(0).clamp(min=_FLOOR)
    factor = (activation.clamp(min=_FLOOR) ** alpha / weight ** (1 - alpha)).clamp(min=_FLOOR)
    # A common factor would change nothing but the size of the numbers; keep their geometric mean.
    factor = factor / factor.log().mean().exp()
    producer = model.get_submodule(fold.producer)
    rows: Tensor = producer.weight[-factor.numel() :]  # type: ignore[index]
    rows.div_(factor if rows.dim() == 1 else factor[:, None])
    if isinstance(producer.bias, Tensor):
        producer.bias[-factor.numel() :].div_(factor)
    for w in weights:
        w.mul_(factor)


def _parameters(model: nn.Module, fold: Fold) -> list[Tensor]:
    modules = [model.get_submodule(name) for name in (fold.producer, *fold.readers)]
    return [p for module in modules for p in (module.weight, module.bias) if isinstance(p, Tensor)]


def _largest_inputs(model: nn.Module, names: set[str], images: Iterable[Tensor]) -> dict[str, Tensor]:
    """Largest absolute input per channel [in] of each named linear layer."""
    found: dict[str, Tensor] = {}

    def hook(name: str):  # type: ignore[no-untyped-def]
        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].abs().flatten(0, -2).amax(0)
            found[name] = torch.maximum(found[name], values) if name in found else values

        return record

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        for batch in images:
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found
