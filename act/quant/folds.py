"""Places where a per-channel factor can be absorbed without any cost at run time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Fold:
    """`producer` (a LayerNorm, or the last rows of a linear layer) feeds the columns of the linear `readers`."""

    producer: str
    readers: tuple[str, ...]


def find_folds(model: nn.Module, image: Tensor) -> list[Fold]:
    """Candidates, from one forward of `image` [B, C, H, W]: a LayerNorm whose output tensor is the input of linear
    layers, and the value rows of a fused qkv before the projection. A candidate must still be proved by the output:
    something that is no linear layer may read the same tensor.
    """
    outputs: list[tuple[str, Tensor]] = []
    readers: dict[int, list[str]] = {}
    kept: list[Tensor] = []  # holding every tensor keeps its address its own

    def norm_hook(name: str):  # type: ignore[no-untyped-def]
        def record(module: nn.Module, inputs: object, output: Tensor) -> None:
            outputs.append((name, output))

        return record

    def linear_hook(name: str):  # type: ignore[no-untyped-def]
        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            kept.append(inputs[0])
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
            prefix = f"{name}." if name else ""
            folds.append(Fold(f"{prefix}qkv", (f"{prefix}proj",)))
    return folds


def fold_tensors(model: nn.Module, fold: Fold) -> list[Tensor]:
    """Every tensor that `apply_fold` changes."""
    modules = [model.get_submodule(name) for name in (fold.producer, *fold.readers)]
    return [t.data for module in modules for t in (module.weight, module.bias) if isinstance(t, Tensor)]


@torch.no_grad()
def apply_fold(model: nn.Module, fold: Fold, factor: Tensor) -> None:
    """Divide the producer's channels by `factor` [K] and multiply the readers' columns by it."""
    producer = model.get_submodule(fold.producer)
    rows: Tensor = producer.weight.data[-factor.numel() :]  # type: ignore[index]
    rows.div_(factor if rows.dim() == 1 else factor[:, None])
    if isinstance(producer.bias, Tensor):
        producer.bias.data[-factor.numel() :].div_(factor)
    for name in fold.readers:
        model.get_submodule(name).weight.data.mul_(factor)  # type: ignore[operator]
