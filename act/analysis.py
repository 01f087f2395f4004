"""What a forward of one image costs: multiply-accumulates, bit operations and time of every matrix product.

The products are those that torch really executes, with their shapes; what each is for follows from the order in which
a block calls them and from whether an operand is a weight, not from class or attribute names. docs/accounting.md has
the definitions.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from act.folding import number_of
from act.models import taking
from act.tokens.blocks import TokenMerge

KINDS = ("patch_embed", "qkv", "qk^T", "av", "proj", "fc1", "fc2", "head", "merge", "other")
FLOAT_BITS = 32
_ATEN = torch.ops.aten


@dataclass(frozen=True)
class Product:
    """One matrix product or convolution.

    `module` is the innermost module that calls it, `block` the transformer block it belongs to ('' outside).
    `bits` are those of its two operands, `density` the share of its weights that are not zero by a mask. `params` are
    the parameters of the module, counted at its first product. `seconds` is None unless it was timed.
    """

    module: str
    weighted: bool
    macs: int
    columns: int  # length of the output's last axis (channels of a convolution)
    groups: int
    params: int
    bits: tuple[int, int] = (FLOAT_BITS, FLOAT_BITS)
    density: float = 1.0
    block: str = ""
    kind: str = "other"
    seconds: float | None = None

    @property
    def bops(self) -> float:
        """Bit operations: MACs x bits of one operand x bits of the other, zero weights left out."""
        return self.macs * self.bits[0] * self.bits[1] * self.density


@dataclass(frozen=True)
class Analysis:
    """The products of one image in call order; `rest` are the seconds of everything else by module, if timed."""

    params: int
    products: list[Product]
    rest: dict[str, float]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all products."""
        return sum(product.macs for product in self.products)

    @property
    def bops(self) -> int:
        """Bit operations of all products."""
        return round(sum(product.bops for product in self.products))

    @property
    def blocks(self) -> list[str]:
        """The transformer blocks in call order."""
        return list(dict.fromkeys(product.block for product in self.products if product.block))


def analyze(model: nn.Module, input_size: tuple[int, int, int], repeats: int = 0) -> Analysis:
    """Count the products of one image [channels, height, width]; with `repeats` also time them, the median of so many.

    Attention is run as the two products it is, whichever fused kernel the model would use. Works on the meta device.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    image = torch.zeros(1, *input_size, device=device)
    training = model.training
    model.eval()
    traces = []
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            for _ in range(1 + repeats):
                trace = _Trace(model)
                with trace.watching(), taking(input_size):
                    outputs = model(image)
                traces.append(trace)
    finally:
        model.train(training)
    products = _named(traces[0].products, _classes(outputs))
    rest: dict[str, float] = {}
    if repeats:
        timed = traces[1:]  # the first pass also warms up
        products = [
            replace(product, seconds=statistics.median(trace.seconds[index] for trace in timed))
            for index, product in enumerate(products)
        ]
        rest = {name: statistics.median(trace.rest.get(name, 0.0) for trace in timed) for name in traces[0].rest}
    return Analysis(sum(parameter.numel() for parameter in model.parameters()), products, rest)


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the products of a forward, with the module that calls each."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[Product] = []
        self.seconds: list[float] = []
        self.rest: dict[str, float] = {}
        self._model = model
        self._stack: list[tuple[str, nn.Module]] = [("", model)]
        self._weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self._counted: set[str] = set()
        self._calls: dict[str, int] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record what is executed inside. Entering the mode alone does not follow the modules: handling an operator
        enters it again."""
        hooks: list[Any] = []
        try:
            for name, module in self._model.named_modules():
                if name:
                    hooks.append(module.register_forward_pre_hook(self._push(name)))
                    hooks.append(module.register_forward_hook(self._pop, always_call=True))
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _push(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._stack.append((name, module))

        return hook

    def _pop(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self._stack[-1][1] is module:
            self._stack.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        count = _COUNTS.get(func.overloadpacket)
        if count is None:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        begin = time.perf_counter()
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.is_cuda:
            torch.cuda.synchronize(result.device)
        spent = time.perf_counter() - begin
        name, module = self._stack[-1]
        if count is None:
            self.rest[name] = self.rest.get(name, 0.0) + spent
        else:
            left, right, macs = count(args, result)
            self.products.append(self._product(name, module, left, right, macs, args, result))
            self.seconds.append(spent)
        return result

    def _product(
        self, name: str, module: nn.Module, left: Tensor, right: Tensor, macs: int, args: Any, result: Tensor
    ) -> Product:
        operands = {tensor.untyped_storage()._cdata for tensor in (left, right)}
        # A quantised or masked weight is computed anew, so that its layer is what tells it is one.
        weighted = isinstance(module, nn.Linear | nn.Conv2d) or bool(operands & self._weights)
        convolution = isinstance(result, Tensor) and result.dim() == 4 and right.dim() == 4
        params = 0 if name in self._counted else sum(p.numel() for p in module.parameters(recurse=False))
        self._counted.add(name)
        bits, density = _layer_bits(module) if weighted else _product_bits(module, self._calls.get(name, 0))
        if not weighted:
            self._calls[name] = self._calls.get(name, 0) + 1
        groups = int(args[8]) if convolution and len(args) > 8 else 1
        columns = int(result.shape[1 if convolution else -1])
        kind = "merge" if isinstance(module, TokenMerge) else "other"
        return Product(name, weighted, macs, columns, groups, params, bits, density, kind=kind)


def _mm(args: Any, result: Tensor) -> tuple[Tensor, Tensor, int]:
    return args[0], args[1], result.numel() * int(args[0].shape[-1])


def _addmm(args: Any, result: Tensor) -> tuple[Tensor, Tensor, int]:
    return args[1], args[2], result.numel() * int(args[1].shape[-1])


def _convolution(args: Any, result: Tensor) -> tuple[Tensor, Tensor, int]:
    return args[0], args[1], result.numel() * math.prod(args[1].shape[1:])


_COUNTS = {
    _ATEN.mm: _mm,
    _ATEN.bmm: _mm,
    _ATEN.addmm: _addmm,
    _ATEN.baddbmm: _addmm,
    _ATEN.linear: _mm,
    _ATEN.convolution: _convolution,
}


def _layer_bits(module: nn.Module) -> tuple[tuple[int, int], float]:
    """Bits of input and weight of a layer, and the density of its mask."""
    quantizers = (getattr(module, "input_quantizer", None), getattr(module, "weight_quantizer", None))
    mask = getattr(module, "weight_mask", None)
    density = float(mask.ne(0).float().mean()) if isinstance(mask, Tensor) and mask.device.type != "meta" else 1.0
    first, second = (_bits(quantizer) for quantizer in quantizers)
    return (first, second), density


def _product_bits(module: nn.Module, call: int) -> tuple[tuple[int, int], float]:
    """Bits of the operands of an attention module's product number `call`."""
    quantizers = list(getattr(module, "matmul_quantizers", ()))[2 * call : 2 * call + 2]
    first, second = (_bits(quantizer) for quantizer in (*quantizers, None, None)[:2])
    return (first, second), 1.0


def _bits(quantizer: Any) -> int:
    return int(quantizer.bits) if quantizer is not None and quantizer.enabled else FLOAT_BITS


def _named(products: Sequence[Product], classes: set[int]) -> list[Product]:
    """The products with `block` and `kind`; `classes` are the widths of the model's outputs."""
    blocks = _blocks(products)
    placed = [replace(product, block=_within(product.module, blocks)) for product in products]
    inside = [index for index, product in enumerate(placed) if product.block]
    kinds = [product.kind for product in placed]
    for block in blocks:
        own = [index for index in inside if placed[index].block == block and placed[index].kind != "merge"]
        for index, kind in zip(own, _block_kinds([placed[index] for index in own]), strict=True):
            kinds[index] = kind
    for index, product in enumerate(placed):
        if not product.block and product.weighted:
            if inside and index < inside[0]:
                kinds[index] = "patch_embed"
            elif (not inside or index > inside[-1]) and product.columns in classes:
                kinds[index] = "head"
    return [replace(product, kind=kind) for product, kind in zip(placed, kinds, strict=True)]


def _blocks(products: Iterable[Product]) -> list[str]:
    """The widest numbered modules around exactly one attention, that is around the products of two activations."""
    pairs = (product for product in products if not product.weighted and product.kind != "merge")
    attentions = list(dict.fromkeys(product.module for product in pairs))
    found = []
    for name in attentions:
        parts = name.split(".")
        prefixes = [".".join(parts[: end + 1]) for end, part in enumerate(parts) if number_of(part)]
        alone = [prefix for prefix in prefixes if sum(_within(other, [prefix]) != "" for other in attentions) == 1]
        found += alone[:1]
    return found


def _within(module: str, blocks: Iterable[str]) -> str:
    return next((block for block in blocks if f"{module}.".startswith(f"{block}.")), "")


def _block_kinds(products: Sequence[Product]) -> list[str]:
    """Kinds by the order of calls: weights before the first product of activations are qkv, the first weight after
    the last one is proj, then come fc1 and, last, fc2. Grouped convolutions are none of these."""
    pairs = [index for index, product in enumerate(products) if not product.weighted]
    dense = [index for index, product in enumerate(products) if product.weighted and product.groups == 1]
    kinds = ["other"] * len(products)
    for number, index in enumerate(pairs):
        kinds[index] = "av" if number % 2 else "qk^T"
    widths = {products[index].columns for index in dense if index < pairs[0]}
    for index in dense:
        # The values may be projected only after the scores are known; position biases come there, too.
        if index < pairs[0] or (index < pairs[-1] and products[index].columns in widths):
            kinds[index] = "qkv"
    after = [index for index in dense if index > pairs[-1]]
    for number, index in enumerate(after):
        kinds[index] = "proj" if number == 0 else "fc2" if index == after[-1] else "fc1"
    return kinds


def _classes(outputs: Any) -> set[int]:
    if isinstance(outputs, Tensor):
        return {int(outputs.shape[-1])} if outputs.dim() else set()
    values = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, list | tuple) else ()
    return {size for value in values for size in _classes(value)}
