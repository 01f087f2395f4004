"""Running a model, or one repeated block of it, just far enough to see what enters and leaves one of its layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


class _Stop(Exception):
    """Ends a forward early: nothing after this point is needed."""


@dataclass(frozen=True)
class Seen:
    """One pass of a batch: the layer's input, and the residual stream its output is added to (None: not asked for)."""

    inputs: Tensor
    skip: Tensor | None


class _FindAdd(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Finds the addition `skip + y` of a watched tensor `y`, if that is the first thing that happens to `y`.

    It looks at addresses below the modules, so any code will do: identities and views do not hide the addition.
    """

    def __init__(self, stop: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stop = stop
        self.watched: dict[int, tuple[str, Tensor]] = {}
        self.skips: dict[str, Tensor] = {}

    def watch(self, name: str, output: Tensor) -> None:
        self.watched[output.data_ptr()] = (name, output)  # the reference keeps the address from being reused

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            used = [arg for arg in args if isinstance(arg, Tensor)]
            for arg in used:
                name, output = self.watched.pop(arg.data_ptr(), ("", None))
                if output is not None and func in _ADDITIONS and len(used) == 2 and not kwargs:
                    self._found(name, arg, used[1] if arg is used[0] else used[0])
        return func(*args, **(kwargs or {}))

    def _found(self, name: str, output: Tensor, skip: Tensor) -> None:
        if skip.shape == output.shape:
            self.skips[name] = skip
            if self.stop:
                raise _Stop


@contextmanager
def _hooked(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def see(module: nn.Module, batch: Tensor, layer: nn.Module, with_skip: bool) -> Seen:
    """Run `module(batch)` until `layer` has its input and, if asked, its output was added to a residual stream."""
    caught: list[Tensor] = []
    finder = _FindAdd(stop=True)

    def enter(_: nn.Module, layer_args: tuple[Tensor, ...]) -> None:
        caught.append(layer_args[0])
        if not with_skip:
            raise _Stop

    def leave(_: nn.Module, __: Any, output: Tensor) -> None:
        finder.watch("layer", output)

    with _hooked(layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)):
        try:
            if with_skip:
                with finder:
                    module(batch)
            else:
                module(batch)
        except _Stop:
            pass
    return Seen(caught[0], finder.skips.get("layer"))


@dataclass
class Block:
    """A repeated part of the model with target layers. `follows`: its only input is the previous block's output."""

    name: str
    layers: list[str] = field(default_factory=list)
    follows: bool = False


@dataclass(frozen=True)
class Plan:
    """What a probing forward found: blocks in call order (one named "" is the whole model) and residual layers."""

    blocks: list[Block]
    residual: frozenset[str]


def _parents(model: nn.Module, layers: Sequence[str]) -> dict[str, str]:
    """For each layer the outermost list element (`blocks.3`, `layers.0.blocks.1`) with no list of targets inside it."""
    modules = dict(model.named_modules())
    result = {}
    for layer in layers:
        parts = layer.split(".")
        prefixes = [".".join(parts[:i]) for i in range(1, len(parts))]
        elements = [
            name for name in prefixes if isinstance(modules[name.rpartition(".")[0]], (nn.ModuleList, nn.Sequential))
        ]
        result[layer] = elements[-1] if elements else ""
    nested = {p for p in result.values() for q in result.values() if p and q != p and q.startswith(p + ".")}
    return {layer: "" if parent in nested else parent for layer, parent in result.items()}


def probe(model: nn.Module, layers: Sequence[str], batch: Tensor) -> Plan:
    """Find call order, replayable blocks and residual additions with one forward of one batch.

    Raises ValueError naming the layers that get no input (their weight is used outside their forward) or more than one.
    """
    order: list[str] = []
    ends: dict[str, tuple[tuple[Any, ...], dict[str, Any], Any]] = {}
    finder, parents, handles = _FindAdd(), _parents(model, layers), []
    for name in layers:
        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(lambda _, __, name=name: order.append(name)))
        handles.append(module.register_forward_hook(lambda _, __, output, name=name: finder.watch(name, output)))
    for name in {parent for parent in parents.values() if parent}:

        def record(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            ends[name] = (args, kwargs, output)

        handles.append(model.get_submodule(name).register_forward_hook(record, with_kwargs=True))
    with _hooked(*handles), finder:
        model(batch)
    unused = [name for name in layers if name not in order]
    if unused:
        raise ValueError(f"no input reaches these layers, their weight is used elsewhere: {', '.join(unused)}")
    shared = sorted({name for name in order if order.count(name) > 1})
    if shared:
        raise ValueError(f"these layers are called more than once in a forward: {', '.join(shared)}")
    return Plan(_blocks(order, parents, ends), frozenset(finder.skips))


def _blocks(order: list[str], parents: dict[str, str], ends: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    for name in order:
        if not blocks or blocks[-1].name != parents[name]:
            blocks.append(Block(parents[name]))
        blocks[-1].layers.append(name)
    for previous, block in zip([None, *blocks], blocks, strict=False):
        if not block.name:
            continue
        args, kwargs, _ = ends[block.name]
        extra = any(isinstance(value, Tensor) for value in (*args[1:], *kwargs.values()))
        if extra or not args or not isinstance(args[0], Tensor) or len(args) > 1 or any(kwargs.values()):
            block.name = ""  # cannot be replayed from one tensor: the whole model is run instead
        elif previous is not None and previous.name:
            block.follows = ends[previous.name][2] is args[0]
    return blocks
