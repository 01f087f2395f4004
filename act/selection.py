"""Which layers a strategy may touch: found by running the model once, not by class names.

A layer counts when its own forward is called: a weight read from outside (`F.linear(x, layer.weight)`) would
ignore whatever the layer's forward does, so such a layer is left, with that reason.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from act.layers import compressible
from act.loose_weights import LooseWeights
from act.strategies.base import LayerLeft, LayerPlan

GLOB_FIELDS = ("include", "exclude", "wide_inputs")


@dataclass(frozen=True)
class Call:
    """One call of a module: shapes without the batch axis."""

    name: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    sees_image: bool
    makes_logits: bool


def trace_calls(model: nn.Module, input_size: tuple[int, int, int]) -> list[Call]:
    """Linear and convolution layers in call order, from one forward of two images of noise."""
    return _trace(model, input_size)[0]


def _trace(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[list[Call], list[LayerLeft]]:
    """The calls, and the weights that are multiplied by without one."""
    device = next(model.parameters()).device
    image = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0)).to(device)
    seen: list[tuple[str, tuple[int, ...], Tensor, bool]] = []

    def hook(name: str):  # type: ignore[no-untyped-def]
        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.append((name, tuple(inputs[0].shape[1:]), output, inputs[0].data_ptr() == image.data_ptr()))

        return record

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    training, loose = model.training, LooseWeights(model)
    try:
        model.eval()
        with torch.no_grad(), loose:
            result = model(image)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    ends = {t.shape for t in _tensors(result)}
    last: dict[str, Call] = {}
    for name, shape, output, sees_image in seen:
        logits = output.dim() == 2 and output.shape in ends
        last.setdefault(name, Call(name, shape, tuple(output.shape[1:]), sees_image, logits))
    return list(last.values()), loose.left()


def select_layers(
    model: nn.Module, input_size: tuple[int, int, int], include: Sequence[str], exclude: Sequence[str]
) -> LayerPlan:
    """Layers called in a forward and let through by the globs; all others that multiply by a weight are `left`."""
    plan = LayerPlan()
    traced, loose = _trace(model, input_size)
    calls = {call.name: call for call in traced}
    for name, call in calls.items():
        if call.sees_image or call.makes_logits:
            plan.edge.add(name)
        reason = _reason(model.get_submodule(name), name, include, exclude)
        if reason is None:
            plan.done.append(name)
        else:
            plan.left.append(LayerLeft(name, reason))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and name not in calls:
            plan.left.append(LayerLeft(name, "its forward is not called (unused, or its weight is read from outside)"))
    plan.left += loose
    return plan


def unmatched_globs(section: str, config: object, plan: LayerPlan) -> list[str]:
    """A problem for each glob of a strategy's `config` that matches nothing the strategy could have touched."""
    names = [*plan.done, *(layer.name.partition(" ")[0] for layer in plan.left)]
    problems = []
    for field in GLOB_FIELDS:
        for glob in getattr(config, field, ()):
            if not names or any(fnmatch.fnmatchcase(name, glob) for name in names):
                continue
            near = difflib.get_close_matches(glob, names, n=3, cutoff=0.5) or names[:3]
            problems.append(
                f"{section}.{field}: {glob!r} matches nothing that {section} could change; such are {', '.join(near)} "
                "(`vitcompress plan` lists all)"
            )
    return problems


def _reason(module: nn.Module, name: str, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    if not compressible(module):
        return f"{type(module).__name__} computes its weight in its own way"
    return glob_reason(name, include, exclude)


def glob_reason(name: str, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    """Why the globs do not let a name through; None if they do."""
    if not any(fnmatch.fnmatchcase(name, glob) for glob in include):
        return "not matched by include"
    hit = next((glob for glob in exclude if fnmatch.fnmatchcase(name, glob)), None)
    return None if hit is None else f"excluded by {hit!r}"


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for part in value for t in _tensors(part)] if isinstance(value, list | tuple) else []
