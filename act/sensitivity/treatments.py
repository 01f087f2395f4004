"""Treatments whose cost is measured: each changes one layer, or one group of units, and can be taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from torch import Tensor, nn

from act.context import Context
from act.quant.calibrate import quantized_layers
from act.quant.config import QuantConfig
from act.quant.fake_quant import FakeQuantize
from act.quant.matmul import QuantizedAttention
from act.quant.prepare import add_quantizers, partly_quantized, quant_plan, set_ranges
from act.selection import trace_calls
from act.sparsity.masks import Pattern, nm_mask, parse_pattern
from act.strategies.base import LayerLeft
from act.strategies.prune import Prune, PruneConfig


@dataclass(frozen=True)
class Unit:
    """One thing to treat on its own. Within `applied()` the model is treated, before and after it is not.

    `name`: a layer, or the module around a group of units. `layers`: the called layers that it consists of, at least
    one.
    `kind`: what a group is (heads, mlp, attention); empty for a layer. `detail`: how the treatment came out here.
    """

    name: str
    layers: tuple[str, ...]
    applied: Callable[[], AbstractContextManager[None]]
    kind: str = ""
    detail: str = ""


@dataclass
class Prepared:
    """What a treatment found in a model: the units it can treat, and the layers it leaves, with the reason."""

    units: list[Unit]
    left: list[LayerLeft] = field(default_factory=list)


class Treatment(Protocol):
    """One way to compress. `name` is what tables call it."""

    @property
    def name(self) -> str: ...

    def prepare(self, model: nn.Module) -> Prepared:
        """Find the units of `model`, a copy in eval mode that may be changed as long as it computes the same."""


@contextmanager
def changed(tensor: Tensor, value: Tensor) -> Iterator[None]:
    """`tensor` holds `value` inside."""
    before = tensor.detach().clone()
    try:
        tensor.data.copy_(value)
        yield
    finally:
        tensor.data.copy_(before)


class Sparsity:
    """N:M sparsity of one layer by magnitude, with the choice of layers of `Prune` (arXiv 2104.08378)."""

    def __init__(self, config: PruneConfig, ctx: Context) -> None:
        self.config, self.ctx = config, ctx

    @property
    def name(self) -> str:
        return self.config.pattern

    def prepare(self, model: nn.Module) -> Prepared:
        plan = Prune(self.config).select(model, self.ctx)
        pattern = parse_pattern(self.config.pattern)
        units = []
        for layer in plan.done:
            weight: Tensor = model.get_submodule(layer).weight  # type: ignore[assignment]
            pruned = partial(_pruned, weight, pattern)
            units.append(Unit(layer, (layer,), pruned))
        return Prepared(units, plan.left)


@contextmanager
def _pruned(weight: Tensor, pattern: Pattern) -> Iterator[None]:
    with changed(weight, weight.detach() * nm_mask(weight.detach().abs(), *pattern)):
        yield


class Quantization:
    """Weight and input of one layer on integers, as QuantPost does it: equalised, calibrated and bias-corrected."""

    def __init__(self, config: QuantConfig, ctx: Context) -> None:
        # The run's record of edits and its log are not concerned by what is only tried.
        self.config, self.ctx = config, replace(ctx, edits=[], log=_unlogged)

    @property
    def name(self) -> str:
        """int8, or the bits of weights and activations where they differ: w4a8, int4 weights."""
        weight, activation = self.config.weight_bits, self.config.activation_bits
        if not activation:
            return f"int{weight} weights"
        return f"int{weight}" if weight == activation else f"w{weight}a{activation}"

    def prepare(self, model: nn.Module) -> Prepared:
        left = quant_plan(model, self.config, self.ctx).left
        called = [call.name for call in trace_calls(model, self.ctx.input_size)]
        names = add_quantizers(model, self.config, self.ctx, "fixed")
        layers = dict(quantized_layers(model))
        biases = {name: layer.bias.detach().clone() for name, layer in layers.items() if layer.bias is not None}
        set_ranges(model, names, self.config, self.ctx)
        corrected = {name: layers[name].bias.detach().clone() for name in biases}  # type: ignore[union-attr]
        partly: dict[str, str] = {}
        if self.config.activation_bits:
            partly = {layer.name: layer.reason for layer in partly_quantized(model, self.config, self.ctx)}
        units = []
        for name in names:
            quantizers = _quantizers(model.get_submodule(name))
            for quantizer in quantizers:
                quantizer.enabled = False
            if name not in layers:  # an attention module: its own two products, not its layers
                inside = tuple(layer for layer in called if layer.startswith(f"{name}."))
                units.append(Unit(name, inside, partial(_quantized, quantizers, None, None), "attention"))
                continue
            bias = layers[name].bias
            if bias is not None:
                bias.data.copy_(biases[name])
            applied = partial(_quantized, quantizers, bias, corrected.get(name))
            units.append(Unit(name, (name,), applied, detail=partly.get(name, "")))
        return Prepared(units, left)


def _quantizers(module: nn.Module) -> list[FakeQuantize]:
    """Those of a layer, or of the products of an attention module, without those of the layers inside."""
    if isinstance(module, QuantizedAttention):
        return [quantizer for quantizer in module.matmul_quantizers if isinstance(quantizer, FakeQuantize)]
    return [part for part in module.children() if isinstance(part, FakeQuantize)]


@contextmanager
def _quantized(quantizers: list[FakeQuantize], bias: Tensor | None, corrected: Tensor | None) -> Iterator[None]:
    for quantizer in quantizers:
        quantizer.enabled = True
    try:
        if bias is None or corrected is None:
            yield
        else:
            with changed(bias, corrected):
                yield
    finally:
        for quantizer in quantizers:
            quantizer.enabled = False


def _unlogged(event: str, message: str = "", **fields: object) -> None:
    return None
