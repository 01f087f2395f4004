"""How much a model's outputs depend on each of its blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from act.depth.remove import without
from act.distill.losses import soft_kl
from act.distill.match import channel_axis
from act.models import logits

Progress = Callable[[str], None]


def cosine_distance(given: Tensor, output: Tensor) -> float:
    """Mean of 1 - cosine similarity of a block's input and output [B, ..., C], token by token (arXiv 2403.03853)."""
    return float((1 - F.cosine_similarity(given.double(), output.double(), dim=-1)).mean())


@torch.no_grad()
def block_distances(model: nn.Module, names: Sequence[str], images: Iterable[Tensor]) -> dict[str, float]:
    """`cosine_distance` of each named block, the mean over `images` ([B, C, H, W] batches)."""
    total = dict.fromkeys(names, 0.0)
    count = 0

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            axis = channel_axis(output.shape, model)
            total[name] += len(output) * cosine_distance(args[0].movedim(axis, -1), output.movedim(axis, -1))

        return hook

    handles = [model.get_submodule(name).register_forward_hook(record(name)) for name in names]
    try:
        for batch in images:
            count += len(batch)
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: value / max(count, 1) for name, value in total.items()}


@torch.no_grad()
def least_needed(
    model: nn.Module, names: Sequence[str], images: Iterable[Tensor], count: int, progress: Progress
) -> dict[str, float]:
    """The `count` blocks to remove one after the other, each with the divergence that its removal leads to.

    Each time the block goes without which the outputs stay closest to those of the whole model: KL(whole || shortened)
    of the class probabilities in nats, the mean over `images`; measured anew after each removal, since what one block
    adds another can give as well (SLEB, arXiv 2402.09025). `model` is unchanged afterwards.
    """
    batches = list(images)
    whole = [logits(model(batch)) for batch in batches]
    chosen: dict[str, float] = {}
    for _ in range(count):
        found = {}
        for name in names:
            if name not in chosen:
                with without(model, [*chosen, name]):
                    found[name] = _divergence(model, batches, whole)
        best = min(found, key=lambda name: found[name])
        chosen[best] = found[best]
        progress(f"{len(chosen)}/{count} {best}: without it KL {found[best]:.4f} from the whole model")
    return chosen


def _divergence(model: nn.Module, batches: Sequence[Tensor], whole: Sequence[Tensor]) -> float:
    sums = [
        float(soft_kl(logits(model(batch)).double(), target.double())) * len(batch)
        for batch, target in zip(batches, whole, strict=True)
    ]
    return sum(sums) / sum(len(batch) for batch in batches)
