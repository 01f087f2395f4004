"""One-shot N:M pruning of a whole model from calibration batches, layer by layer in call order."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from act.sparsity.masks import Pattern, from_gemm_rows, gemm_rows, grouped, nm_mask, nm_violations
from act.sparsity.moments import Moments
from act.sparsity.sparsegpt import DAMPING, output_error, sparsegpt
from act.sparsity.walk import Walk
from act.sparsity.wanda import wanda_score

Criterion = Literal["magnitude", "wanda", "sparsegpt"]
Batches = Iterable[Tensor] | Callable[[], Iterable[Tensor]]
CRITERIA: tuple[Criterion, ...] = ("magnitude", "wanda", "sparsegpt")


def oneshot_prune(
    model: nn.Module,
    layers: list[str],
    batches: Batches,
    n: int,
    m: int,
    criterion: Criterion = "sparsegpt",
    *,
    unit: int = 1,
    damping: float = DAMPING,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Tensor]:
    """Prune `layers` of `model` to N:M along K in place; returns their boolean masks by name, in the shape of the
    weight.

    `layers` are names of nn.Linear or ungrouped nn.Conv2d modules (or subclasses); their weights are overwritten, zeros
    included, and with `sparsegpt` their biases too. `batches` holds model inputs `[batch, ...]`; it is read many times,
    so it must be a list, a re-iterable, or a function that returns a new iterator over the same batches each time.

    `magnitude` (|W|) needs no batches and `wanda` (|W| times the norm of its input, arXiv 2306.11695) only chooses
    masks. `sparsegpt` (arXiv 2301.00774) also updates what is kept. Each layer there sees the inputs of the model
    pruned so far and is fitted to the *dense* model's output (asymmetric calibration as in GPTAQ, arXiv 2504.02692).
    Where that output is added to a residual stream, it is fitted to the dense stream after the addition, and so makes
    up for the errors of all layers before it. `damping` is relative to the mean of the Hessian's diagonal, and is a
    ridge towards the dense weight. `unit` weights in a row are kept or dropped together.

    Memory: one layer's moments, and for models with repeated blocks the input of one block for all batches, twice.
    Repeated blocks are replayed one by one; a layer outside of any costs a forward of the model as far as that layer.
    Raises ValueError: unknown or unfit layers, K not divisible by m, batches exhausted after one pass or empty, layers
    that no input reaches (their weight is used outside their forward) or that are called twice in a forward, nan
    inputs.
    """
    pattern = Pattern(n, m, unit)
    modules = _check(model, layers, m, criterion)
    if criterion == "magnitude":
        return {
            name: _apply(module, nm_mask(module.weight.detach().abs(), *pattern)) for name, module in modules.items()
        }
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            pruner = _Pruner(model, _reader(batches), pattern, criterion, damping, progress or (lambda _: None))
            masks = pruner.run(layers)
    finally:
        for module in training:
            module.training = True
    return {name: masks[name] for name in layers}


def _check(model: nn.Module, layers: list[str], m: int, criterion: str) -> dict[str, nn.Linear | nn.Conv2d]:
    if criterion not in CRITERIA:
        raise ValueError(f"unknown criterion {criterion!r}; it is one of {', '.join(CRITERIA)}")
    known, found = dict(model.named_modules()), {}
    for name in layers:
        module = known.get(name)
        if not isinstance(module, nn.Linear | nn.Conv2d):
            what = "no such module" if module is None else f"a {type(module).__name__}"
            raise ValueError(f"layer {name!r} cannot be pruned: it is {what}; nn.Linear and nn.Conv2d are possible")
        if isinstance(module, nn.Conv2d) and module.groups != 1:
            raise ValueError(f"layer {name!r} cannot be pruned: grouped convolutions are not supported")
        try:
            grouped(module.weight, m)
        except ValueError as error:
            raise ValueError(f"layer {name!r} cannot be pruned: {error}") from None
        found[name] = module
    return found


def _reader(batches: Batches) -> Callable[[], Iterator[Tensor]]:
    if callable(batches):
        return lambda: iter(batches())
    if iter(batches) is batches:
        raise ValueError("batches is a one-pass iterator, but it is read once per layer: pass a list or a function")
    return lambda: iter(batches)


def _apply(module: nn.Linear | nn.Conv2d, mask: Tensor) -> Tensor:
    module.weight.data.mul_(mask)
    return mask


@dataclass
class _Pruner:
    """Prunes the layers of a walk one by one."""

    model: nn.Module
    read: Callable[[], Iterator[Tensor]]
    pattern: Pattern
    criterion: Criterion
    damping: float
    progress: Callable[[str], None]

    def run(self, layers: list[str]) -> dict[str, Tensor]:
        walk = Walk(copy.deepcopy(self.model), self.model, layers, self.read)
        masks: dict[str, Tensor] = {}
        for name, block in walk.layers():
            masks[name] = self._prune(name, walk.moments(name, block, with_skip=self.criterion == "sparsegpt"))
            self.progress(f"{len(masks)}/{len(layers)} {name}: {self.criterion} {self.pattern}, {self.note}")
        return masks

    def _prune(self, name: str, moments: Moments) -> Tensor:
        layer = cast(nn.Linear | nn.Conv2d, self.model.get_submodule(name))
        shape, flat = layer.weight.shape, gemm_rows(layer.weight.detach())
        if self.criterion == "wanda":
            score = wanda_score(flat, moments.xx.diagonal().sqrt())
            mask = from_gemm_rows(nm_mask(score, *self.pattern), shape)
            self.note = f"{int(mask.sum())} weights kept"
            return _apply(layer, mask)
        hessian = moments.hessian(centred=layer.bias is not None)
        n, m, unit = self.pattern
        target = moments.target(flat, layer.bias, self.damping)
        new, flat_mask = sparsegpt(target, hessian, n, m, self.damping, unit=unit)
        self.note = f"relative output error {self._relative_error(target, new, hessian):.4f}"
        mask = from_gemm_rows(flat_mask, shape)
        layer.weight.data.copy_(from_gemm_rows(new, shape))
        if layer.bias is not None:
            layer.bias.data.copy_(moments.bias(gemm_rows(layer.weight.detach())))
        if nm_violations(layer.weight.detach(), *self.pattern):
            raise AssertionError(f"layer {name!r} came out of pruning without its {self.pattern} pattern")
        return mask

    @staticmethod
    def _relative_error(target: Tensor, new: Tensor, hessian: Tensor) -> float:
        power = output_error(target, torch.zeros_like(target), hessian)
        return output_error(target, new, hessian) / power if power > 0 else 0.0
