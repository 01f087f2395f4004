"""Reordering a model's channels before N:M pruning: the search over its groups, the edit, and the teacher's part."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from act.edits import edit_op
from act.errors import InputError
from act.sparsity.channels import ChannelGroup, Segment, apply_order, find_groups, named_tensors, prove
from act.sparsity.masks import Pattern, gemm_rows
from act.sparsity.moments import input_rows
from act.sparsity.permute import Kept, kept_score, search_order


def reorderable(
    model: nn.Module, layers: Iterable[str], m: int, input_size: tuple[int, int, int]
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The proved groups whose order matters to an N:M mask of `layers`, and why others keep theirs, by name."""
    pruned = set(layers)
    found, reasons = find_groups(model)
    reasons = {
        name: why for name, why in reasons.items() if name not in dict(model.named_modules()) or _holds(name, pruned)
    }
    wanted = [group for group in found if pruned.intersection(group.readers)]
    fit = [group for group in wanted if group.block % m == 0 and group.block > m]
    for group in wanted:
        if group not in fit:
            reasons[group.name] = f"{group.kind} channels: {group.block} of them are no two whole groups of {m}"
    device = next(model.parameters()).device
    image = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0)).to(device)
    proved, failed = prove(model, fit, image)
    return proved, reasons | failed


def _holds(name: str, layers: Iterable[str]) -> bool:
    return any(layer.startswith(f"{name}.") for layer in layers)


@torch.no_grad()
def input_norms(model: nn.Module, layers: Iterable[str], batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Root mean square of every input `[K]` of the named layers over `batches`, in the order of `gemm_rows`."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = input_rows(layer, inputs[0])
            sums[name] = sums.get(name, 0) + rows.double().square().sum(0)
            counts[name] = counts.get(name, 0) + len(rows)

        return record

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in layers]
    training = model.training
    try:
        model.eval()
        for batch in batches:
            model(batch)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return {name: (total / counts[name]).sqrt().float() for name, total in sums.items()}


def search_groups(
    model: nn.Module,
    groups: Iterable[ChannelGroup],
    layers: Iterable[str],
    norms: Mapping[str, Tensor],
    pattern: Pattern,
    seed: int,
    progress: Callable[[str, Kept], None],
) -> dict[str, Any]:
    """The edit that reorders `groups` for masks of `layers`; `progress` gets each layer's gain.

    A weight's score is its magnitude, times the norm of its input where `norms` has it (arXiv 2306.11695). The groups
    do not depend on each other: a mask of rows knows nothing of their order.
    """
    pruned, entries = set(layers), []
    for group in groups:
        scores = {name: _score(model, name, norms.get(name)) for name in group.readers if name in pruned}
        order = search_order(torch.cat(list(scores.values())), *pattern, block=group.block, seed=seed)
        gains = {name: kept_score(score, order, *pattern) for name, score in scores.items()}
        for name, gain in gains.items():
            progress(name, gain)
        segments = [[segment.tensor, segment.axis, segment.start] for segment in group.segments]
        kept = {
            name: [float(f"{score:.7g}") for score in (gain.plain, gain.permuted, gain.bound)]
            for name, gain in gains.items()
        }
        words = " ".join(map(str, order.tolist()))
        entries.append({"name": group.name, "order": words, "segments": segments, "kept": kept})
    return {"op": "permute", "groups": entries}


def _score(model: nn.Module, name: str, norm: Tensor | None) -> Tensor:
    """[rows, input channels]: each position of a convolution's kernel has rows of its own."""
    weight = model.get_submodule(name).get_parameter("weight").detach()
    score = gemm_rows(weight).abs()
    if norm is not None:
        score = score * norm
    return score.reshape(-1, weight.shape[1])


@edit_op("permute")
def permute_channels(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    """Reorder groups of channels: `order` lists old positions, `segments` are [tensor, axis, start] that follow it."""
    tensors = named_tensors(model)
    for group in groups:
        order = _order(group)
        segments = [Segment(str(tensor), int(axis), int(start)) for tensor, axis, start in group["segments"]]
        lost = [segment.tensor for segment in segments if segment.tensor not in tensors]
        if lost:
            raise InputError(f"permute: {group['name']}: the model has no tensor {lost[0]}")
        apply_order(tensors, segments, order)


def _order(group: Mapping[str, Any]) -> Tensor:
    order = torch.tensor([int(index) for index in str(group["order"]).split()], dtype=torch.long)
    if not torch.equal(order.sort().values, torch.arange(len(order))):
        raise InputError(f"permute: {group['name']}: its order is no permutation")
    return order


def order_gains(edits: Iterable[Mapping[str, Any]]) -> dict[str, Kept]:
    """What the recorded permutations won, by the layer whose masks gain by it."""
    groups = [group for edit in edits if edit["op"] == "permute" for group in edit["groups"]]
    return {name: Kept(*gain) for group in groups for name, gain in group.get("kept", {}).items()}


def reordered_like(student: nn.Module, teacher: nn.Module, edits: Iterable[Mapping[str, Any]]) -> nn.Module | None:
    """`teacher` with its channels in the student's order, so that features can be compared one by one.

    The teacher itself where the student kept its order, else a copy. None when the teacher is built in another way, so
    that its channels cannot follow.
    """
    mine = [edit for edit in edits if edit["op"] == "permute"]
    if not mine:
        return teacher
    own, theirs = dict(student.named_parameters()), dict(teacher.named_parameters())
    moved = {segment[0] for edit in mine for group in edit["groups"] for segment in group["segments"]}
    same = all(name in own and own[name].shape == tensor.shape for name, tensor in theirs.items())
    if not same or not moved <= named_tensors(teacher).keys():
        return None
    copied = copy.deepcopy(teacher)
    for edit in mine:
        permute_channels(copied, edit["groups"])
    return copied
