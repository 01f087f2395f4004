"""For every group and every size: which units stay, and the tensors of the smaller module."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from act.structure.axes import HEADS, HIDDEN, K, Q, V, find_tensor
from act.structure.importance import Scores, unit_scores
from act.structure.reduce import qk_bases, refit, removal_order, v_bases
from act.structure.shrink import Maps, shrunk_tensors
from act.structure.statistics import Statistics
from act.structure.units import AttentionUnits, Found, Group, MlpUnits

Size = tuple[int, ...]  # (hidden,), or (heads, dimensions of q and k, dimensions of v)


@dataclass(frozen=True)
class _Attention:
    """Heads in the order of their removal; per head bases [d, d] of q, k and v, the rows best first."""

    order: Tensor
    q: Tensor
    k: Tensor
    v: Tensor


class Reducer:
    """Chooses units by `criterion`. With obs, dimensions of heads are those of the best basis and not single ones.

    With `refit_reader` the weights that read a group are fitted to what is left of it.
    """

    def __init__(
        self, model: nn.Module, found: Found, stats: Statistics, criterion: str, refit_reader: bool = True
    ) -> None:
        self.model, self.found, self.stats = model, found, stats
        self.criterion, self.refit_reader = criterion, refit_reader
        self.scores: dict[str, Scores] = {}
        self._attention: dict[str, _Attention] = {}
        self._hidden: dict[str, Tensor] = {}
        for group in found.groups:
            if criterion != "obs":
                self.scores[group.name] = unit_scores(model, group, stats[group.name], criterion)
            if isinstance(group, MlpUnits):
                self._hidden[group.name] = self._hidden_order(group)
            else:
                self._attention[group.name] = self._bases(group)

    def tensors(self, sizes: dict[str, Size]) -> dict[str, Tensor]:
        """The tensors of the model with every named group cut to its size, by full name."""
        maps: Maps = {name: self._maps(self.found.group(name), size) for name, size in sizes.items()}
        tensors = shrunk_tensors(self.model, self.found, maps)
        for name, size in sizes.items():
            tensors |= self._fitted(self.found.group(name), size, maps[name])
        return tensors

    def stand_in(self, name: str, size: Size) -> dict[str, Tensor]:
        """Tensors of the full size with which the model computes what it would with that group cut to `size`."""
        group = self.found.group(name)
        maps = self._maps(group, size)
        if isinstance(group, MlpUnits):
            fitted = self._fitted(group, size, maps)
            return self._spread(group, fitted, _matrix(maps[HIDDEN], group.hidden))
        heads, qk_dim, _ = size
        fitted = self._spread(group, self._fitted(group, size, maps), _matrix(maps[V], group.heads * group.v_dim))
        if qk_dim == group.qk_dim:
            return fitted
        assert heads == group.heads, "one part of an attention at a time"
        own = self._attention[name]
        both = own.k[:, :qk_dim].mT @ own.q[:, :qk_dim]  # q k^T in the small bases, as q' k^T with q' = both @ q
        full: Maps = {name: {Q: torch.block_diag(*both)}}  # type: ignore[no-untyped-call]
        return shrunk_tensors(self.model, self.found, full) | fitted

    def _spread(self, group: Group, fitted: dict[str, Tensor], basis: Tensor) -> dict[str, Tensor]:
        weight = f"{group.reader}.weight"
        shape = find_tensor(self.model, weight).shape
        return fitted | {weight: (fitted[weight].flatten(1).double() @ basis).reshape(shape)}

    def _hidden_order(self, group: MlpUnits) -> Tensor:
        if self.criterion != "obs":
            return self.scores[group.name][HIDDEN].argsort()
        weight, centred = self._reader(group)
        return removal_order(weight, self.stats[group.name].covariance(centred))

    def _reader(self, group: Group) -> tuple[Tensor, bool]:
        """The reader's weight [out, units], and whether its bias can take up means."""
        weight = find_tensor(self.model, f"{group.reader}.weight").detach().flatten(1)
        return weight, self.model.get_submodule(group.reader).bias is not None

    def _bases(self, group: AttentionUnits) -> _Attention:
        stats, heads = self.stats[group.name], group.heads
        weight, centred = self._reader(group)
        moments = stats.covariance(centred)
        q = k = torch.eye(group.qk_dim, dtype=torch.float64).expand(heads, -1, -1)
        v = torch.eye(group.v_dim, dtype=torch.float64).expand(heads, -1, -1)
        if self.criterion == "obs":
            order = removal_order(weight, moments, group.v_dim)
            if group.v_reason is None:
                own = torch.stack(_blocks(moments, group.v_dim))
                v = v_bases(weight.unflatten(1, (heads, group.v_dim)).movedim(1, 0), own)[0]  # type: ignore[no-untyped-call]
            if stats.qq is not None:
                q, k, _ = qk_bases(stats.qq / stats.tokens, stats.keys())
        else:
            scores = self.scores[group.name]
            order = scores[HEADS].argsort()
            v = torch.stack([v[h][scores[V][h].argsort(descending=True)] for h in range(heads)])
            if Q in scores:
                best = [scores[Q][h].argsort(descending=True) for h in range(heads)]
                q = k = torch.stack([q[h][best[h]] for h in range(heads)])
        return _Attention(order, q, k, v)

    def _maps(self, group: Group, size: Size) -> dict[str, Tensor]:
        if isinstance(group, MlpUnits):
            return {HIDDEN: self._hidden[group.name][-size[0] :].sort().values}
        heads, qk_dim, v_dim = size
        own = self._attention[group.name]
        kept = own.order[-heads:].sort().values
        return {
            Q: _heads_map(own.q, kept, qk_dim),
            K: _heads_map(own.k, kept, qk_dim),
            V: _heads_map(own.v, kept, v_dim),
            HEADS: kept,
        }

    def _fitted(self, group: Group, size: Size, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weight and bias of the reader for the reduced input."""
        basis = maps[HIDDEN if isinstance(group, MlpUnits) else V]
        weight, has_bias = self._reader(group)
        stats = self.stats[group.name]
        matrix = _matrix(basis, weight.shape[1])
        if self.refit_reader:
            new = refit(weight, stats.covariance(has_bias), matrix if basis.dim() == 2 else basis)
        else:
            new = weight.double() @ torch.linalg.pinv(matrix)
        shape = (len(weight), -1, *find_tensor(self.model, f"{group.reader}.weight").shape[2:])
        fitted = {f"{group.reader}.weight": new.reshape(shape).to(weight)}
        if has_bias and self.refit_reader:
            bias = find_tensor(self.model, f"{group.reader}.bias").detach()
            mean = stats.mean()
            fitted[f"{group.reader}.bias"] = (bias + weight.double() @ mean - new @ (matrix @ mean)).to(bias)
        return fitted


def _matrix(basis: Tensor, size: int) -> Tensor:
    """Indices [new] as a matrix [new, size]; a matrix as it is."""
    return basis if basis.dim() == 2 else torch.eye(size, dtype=torch.float64)[basis]


def _blocks(moments: Tensor, size: int) -> list[Tensor]:
    """The blocks of `size` on the diagonal."""
    return [moments[i : i + size, i : i + size] for i in range(0, len(moments), size)]


def _heads_map(bases: Tensor, kept: Tensor, size: int) -> Tensor:
    """Which entries of [heads, d] stay: indices if every dimension of the kept heads does, else a matrix."""
    heads, dimensions, _ = bases.shape
    if size == dimensions:
        return (kept.unsqueeze(1) * dimensions + torch.arange(dimensions)).flatten()
    matrix = torch.zeros(len(kept), size, heads, dimensions, dtype=bases.dtype)
    for row, head in enumerate(kept.tolist()):
        matrix[row, :, head] = bases[head, :size]
    return matrix.reshape(len(kept) * size, heads * dimensions)
