"""What groups of units cost at every size: multiply-accumulates, parameters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from act.analysis import Product, analyze
from act.structure.axes import HIDDEN, K, Q, V, find_tensor
from act.structure.reducer import Size
from act.structure.units import AttentionUnits, Found, Group


@dataclass(frozen=True)
class Rates:
    """Cost of one hidden unit; or of one dimension of q and k together, and of v, in one head."""

    hidden: float = 0.0
    qk: float = 0.0
    v: float = 0.0

    def cost(self, size: Size) -> float:
        """Cost of a group at that size, less what no size changes."""
        if len(size) == 1:
            return self.hidden * size[0]
        heads, qk_dim, v_dim = size
        return heads * (qk_dim * self.qk + v_dim * self.v)


def full_size(group: Group) -> Size:
    """The size of a group as it is."""
    return (group.heads, group.qk_dim, group.v_dim) if isinstance(group, AttentionUnits) else (group.hidden,)


def mac_rates(model: nn.Module, found: Found, input_size: tuple[int, int, int]) -> tuple[dict[str, Rates], int]:
    """Multiply-accumulates of one image per unit, by group, and those of the whole model."""
    analysis = analyze(model, input_size)
    return {group.name: _mac_rates(model, group, analysis.products) for group in found.groups}, analysis.macs


def _mac_rates(model: nn.Module, group: Group, products: list[Product]) -> Rates:
    layers = {axis.tensor.removesuffix(".weight"): axis for axis in group.axes if axis.tensor.endswith(".weight")}
    sizes = group.sizes()
    parts = dict.fromkeys((Q, K, V, HIDDEN), 0.0)
    pair = 0
    for product in products:
        if not f"{product.module}.".startswith(f"{group.name}."):
            continue
        axis = layers.get(product.module)
        if axis is None and product.weighted and product.module == group.name:
            axis = layers[f"{group.name}.qkv"]  # computed by the attention module itself, not by the layer
        if axis is not None:
            total = find_tensor(model, axis.tensor).shape[axis.dim]
            for segment in axis.segments:
                if segment in parts:
                    parts[segment] += product.macs * sizes[segment] / total
        elif not product.weighted:
            parts[V if pair else Q] += product.macs
            pair += 1
    if not isinstance(group, AttentionUnits):
        return Rates(hidden=parts[HIDDEN] / group.hidden)
    wide, narrow = group.heads * group.qk_dim, group.heads * group.v_dim
    return Rates(qk=(parts[Q] + parts[K]) / wide, v=parts[V] / narrow)


def param_rates(model: nn.Module, found: Found) -> tuple[dict[str, Rates], int]:
    """Parameters per unit, by group, and those of the whole model."""
    rates = {}
    for group in found.groups:
        parts = dict.fromkeys((Q, K, V, HIDDEN), 0.0)
        sizes = group.sizes()
        for axis in group.axes:
            tensor = find_tensor(model, axis.tensor)
            for segment in axis.segments:
                if segment in parts and isinstance(tensor, nn.Parameter):
                    parts[segment] += tensor.numel() * sizes[segment] / tensor.shape[axis.dim]
        if isinstance(group, AttentionUnits):
            wide, narrow = group.heads * group.qk_dim, group.heads * group.v_dim
            rates[group.name] = Rates(qk=(parts[Q] + parts[K]) / wide, v=parts[V] / narrow)
        else:
            rates[group.name] = Rates(hidden=parts[HIDDEN] / group.hidden)
    return rates, sum(parameter.numel() for parameter in model.parameters())
