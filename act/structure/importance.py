"""What each unit is worth, by the chosen criterion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from act.structure.axes import HEADS, HIDDEN, K, Q, V, find_tensor
from act.structure.statistics import GroupStatistics
from act.structure.units import AttentionUnits, Group

CRITERIA = ("obs", "taylor", "activation", "magnitude")
NEEDS_GRADIENTS = ("taylor",)

Scores = dict[str, Tensor]  # HIDDEN [hidden]; or HEADS [heads], Q and V [heads, dimensions]


def unit_scores(model: nn.Module, group: Group, stats: GroupStatistics, criterion: str) -> Scores:
    """Scores of a group's units, higher is worth more, float64.

    magnitude: squared norm of all weights of the unit. activation: mean square of what the unit adds to the reader's
    output (for q: to the scores). taylor: Fisher information of the unit's gate, in nats (see `statistics`).
    """
    if criterion == "taylor":
        flat = {segment: total / stats.images / 2 for segment, total in stats.saliency.items()}
    elif criterion == "activation":
        flat = _activation(model, group, stats)
    else:
        flat = _magnitude(model, group)
    if not isinstance(group, AttentionUnits):
        return {HIDDEN: flat[HIDDEN]}
    scores = {V: flat[V].reshape(group.heads, group.v_dim)}
    if Q in flat:
        scores[Q] = flat[Q].reshape(group.heads, group.qk_dim)
    scores[HEADS] = flat[HEADS] if HEADS in flat else sum((s.sum(1) for s in scores.values()), torch.zeros(group.heads))
    return scores


def _magnitude(model: nn.Module, group: Group) -> Scores:
    found: Scores = {}
    sizes = group.sizes()
    for axis in group.axes:
        tensor = find_tensor(model, axis.tensor).detach().double().square()
        sums = tensor.movedim(axis.dim, 0).reshape(tensor.shape[axis.dim], -1).sum(1).cpu()
        for segment, part in zip(axis.segments, torch.split(sums, [sizes[s] for s in axis.segments]), strict=True):
            segment = Q if segment == K else segment
            if segment != HEADS:
                found[segment] = found.get(segment, 0) + part
    return found


def _activation(model: nn.Module, group: Group, stats: GroupStatistics) -> Scores:
    weight = find_tensor(model, f"{group.reader}.weight").detach().double()
    columns = weight.flatten(1).square().sum(0)
    worth = stats.covariance(centred=True).diagonal() * columns
    if not isinstance(group, AttentionUnits):
        return {HIDDEN: worth}
    found = {V: worth}
    if stats.qq is not None:
        found[Q] = (stats.qq.diagonal(dim1=1, dim2=2) / stats.tokens * stats.keys().diagonal(dim1=1, dim2=2)).flatten()
    return found
