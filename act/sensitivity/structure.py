"""Structured pruning as a treatment: a share of one block's MLP units, or whole heads, without effect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from act.analysis import analyze
from act.quant.matmul import attention_modules
from act.selection import select_layers
from act.sensitivity.treatments import Prepared, Unit, changed
from act.strategies.base import LayerLeft


class Structure:
    """Takes the smallest `share` of the hidden units of an MLP, or of the heads of an attention, at least one.

    The size of a unit is the product of the norms of the weights that make it and of those that read it. It is taken
    out by zeros in the columns that read it, which is what its removal computes, whatever follows the first layer.
    Blocks, heads and MLPs are found by the products that a forward executes. `input_size`: channels, height, width.
    """

    def __init__(self, share: float, input_size: tuple[int, int, int]) -> None:
        self.share, self.input_size = share, input_size

    @property
    def name(self) -> str:
        return f"structure {100 * self.share:g} %"

    def prepare(self, model: nn.Module) -> Prepared:
        products = [product for product in analyze(model, self.input_size).products if product.weighted]
        found = Prepared([])
        attentions = attention_modules(model)
        for block in dict.fromkeys(product.block for product in products if product.block):
            own = {product.module: product.kind for product in products if product.block == block}
            self._heads(model, own, [name for name in attentions if f"{name}.".startswith(f"{block}.")], found)
            self._hidden(model, own, found)
        plan = select_layers(model, self.input_size, ["*"], [])
        seen = {layer for unit in found.units for layer in unit.layers} | {layer.name for layer in found.left}
        rest = [LayerLeft(name, "makes or reads no heads or MLP units of a transformer block") for name in plan.done]
        found.left += [layer for layer in (*rest, *plan.left) if layer.name not in seen]
        return found

    def _heads(self, model: nn.Module, kinds: dict[str, str], attentions: Sequence[str], found: Prepared) -> None:
        makers = [name for name, kind in kinds.items() if kind == "qkv"]
        readers = [name for name, kind in kinds.items() if kind == "proj"]
        if len(attentions) != 1 or len(readers) != 1:
            return
        heads = int(model.get_submodule(attentions[0]).num_heads)  # type: ignore[arg-type]
        self._add(model, attentions[0], "heads", makers, readers[0], heads, found)

    def _hidden(self, model: nn.Module, kinds: dict[str, str], found: Prepared) -> None:
        makers = [name for name, kind in kinds.items() if kind == "fc1"]
        readers = [name for name, kind in kinds.items() if kind == "fc2"]
        reader = model.get_submodule(readers[0]) if makers and len(readers) == 1 else None
        if isinstance(reader, nn.Linear):
            name = readers[0].rpartition(".")[0]
            self._add(model, name, "mlp", makers, readers[0], reader.in_features, found)

    def _add(
        self, model: nn.Module, name: str, kind: str, makers: Sequence[str], reader: str, units: int, found: Prepared
    ) -> None:
        layer = model.get_submodule(reader)
        if not isinstance(layer, nn.Linear) or layer.in_features % units:
            return
        if units < 2:
            found.left += [LayerLeft(other, f"its block has one of its {kind} only") for other in (*makers, reader)]
            return
        width = layer.in_features // units
        fitting = [other for other in makers if _fits(model.get_submodule(other), layer.in_features)]
        size = _norms(layer.weight.detach().t(), units, width)
        if fitting:
            squares = [_norms(model.get_submodule(other).weight.detach(), units, width) for other in fitting]  # type: ignore[operator]
            size = size * torch.stack(squares).square().sum(0).sqrt()
        count = min(max(1, round(self.share * units)), units - 1)
        mask = torch.zeros(units, dtype=torch.bool, device=size.device)
        mask[size.argsort(stable=True)[:count]] = True
        applied = partial(_without, layer.weight, mask.repeat_interleave(width))
        what = "heads" if kind == "heads" else "hidden units"
        found.units.append(Unit(name, (*fitting, reader), applied, kind, f"{count} of {units} {what}"))


def _fits(module: nn.Module, width: int) -> bool:
    """Whether the rows of a layer are one or several times the reader's columns (a fused qkv, a gated MLP)."""
    return isinstance(module, nn.Linear) and module.out_features % width == 0


def _norms(rows: Tensor, units: int, width: int) -> Tensor:
    """Norm per unit [units] of rows [copies * units * width, K]."""
    return rows.reshape(-1, units, width, rows.shape[1]).square().sum((0, 2, 3)).sqrt()


@contextmanager
def _without(weight: Tensor, columns: Tensor) -> Iterator[None]:
    with changed(weight, weight.detach().masked_fill(columns, 0.0)):
        yield
