"""Which blocks of a model can be removed: found by running it once, not by class names.

A block is an element of a list of modules that adds to its own input (a residual) and gives back the same shape.
Where such elements lie in one another (a stage around its blocks), the innermost ones are the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from act.depth.remove import Removed
from act.strategies.base import LayerLeft, LayerPlan

_ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


@dataclass
class _Element:
    """An element of a list, as it was called last."""

    name: str
    calls: int = 0
    given: Tensor | None = None  # its first argument; the reference keeps the address from being reused
    output: Any = None
    adds: bool = False

    @property
    def reason(self) -> str | None:
        """Why it cannot go, None if it can."""
        if self.calls != 1:
            return "its forward is not called" if self.calls == 0 else f"it is called {self.calls} times in a forward"
        if self.given is None or not isinstance(self.output, Tensor):
            return "its input or output is no tensor"
        if self.given.shape != self.output.shape:
            return f"its output {_shape(self.output)} has not the shape of its input {_shape(self.given)}"
        return None if self.adds else "it does not add to its input"


class _Residuals(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Marks the elements now running whose input is an operand of an addition."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running: list[_Element] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ADDITIONS:
            addresses = {arg.data_ptr() for arg in args if isinstance(arg, Tensor)}
            for element in self.running:
                element.adds |= element.given is not None and element.given.data_ptr() in addresses
        return func(*args, **(kwargs or {}))


def removable_blocks(
    model: nn.Module, input_size: tuple[int, int, int], include: Sequence[str], exclude: Sequence[str]
) -> LayerPlan:
    """The blocks that can be removed, in call order; every other block or stage is left with its reason."""
    elements = _run(model, input_size)
    plan = LayerPlan()
    blocks = [element for element in elements if element.reason is None]
    blocks = [block for block in blocks if not any(_inside(other, block) for other in blocks)]
    for element in elements:
        if any(_inside(element, block) or _inside(block, element) for block in blocks):
            continue  # a part of a block, or the stage around it
        reason = element.reason
        if reason is None and not any(fnmatchcase(element.name, glob) for glob in include):
            reason = "not matched by include"
        hit = next((glob for glob in exclude if fnmatchcase(element.name, glob)), None)
        if reason is None and hit is not None:
            reason = f"excluded by {hit!r}"
        if reason is None:
            plan.done.append(element.name)
        else:
            plan.left.append(LayerLeft(element.name, reason))
    plan.left += [
        LayerLeft(name, "removed before") for name, module in model.named_modules() if isinstance(module, Removed)
    ]
    return plan


def _run(model: nn.Module, input_size: tuple[int, int, int]) -> list[_Element]:
    """Every element of a list that has modules of its own, in call order, after one forward of an image of noise."""
    image = torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0))
    residuals, order = _Residuals(), []
    handles = []

    def enter(element: _Element) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            element.calls += 1
            element.given = args[0] if args and isinstance(args[0], Tensor) else None
            residuals.running.append(element)
            if element.calls == 1:
                order.append(element)

        return hook

    def leave(element: _Element) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            element.output = output
            residuals.running.remove(element)

        return hook

    elements = []
    for name, module in model.named_modules():
        holder = model.get_submodule(name.rpartition(".")[0])
        if isinstance(holder, nn.ModuleList | nn.Sequential) and any(module.children()) and _has_weights(module):
            elements.append(_Element(name))
            handles.append(module.register_forward_pre_hook(enter(elements[-1])))
            handles.append(module.register_forward_hook(leave(elements[-1])))
    training = model.training
    try:
        model.eval()
        with torch.no_grad(), residuals:
            model(image.to(next(model.parameters()).device))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return order + [element for element in elements if element.calls == 0]


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _inside(inner: _Element, outer: _Element) -> bool:
    return inner.name.startswith(f"{outer.name}.")


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape[1:])
