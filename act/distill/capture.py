"""Outputs of named modules: finding the names, and recording the outputs in a forward pass."""

from __future__ import annotations

import difflib
import fnmatch
import string
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from act.depth.remove import Removed
from act.errors import InputError

AUTO = "auto"


def expand_nodes(model: nn.Module, entries: Sequence[str], where: str = "Distillation.node") -> list[list[str]]:
    """The module names each entry (a name, a glob, or `auto`) stands for, in the order of the model.

    In a glob `*` stands for (part of) one level: `blocks.*` is every block, and nothing inside a block. `auto` is the
    output of every block. Raises InputError, listing near names, for an entry that matches nothing.
    """
    names = [name for name, _ in model.named_modules() if name]
    expanded, problems = [], []
    for entry in entries:
        if entry == AUTO:
            expanded.append(all_blocks(model))
            continue
        found = [name for name in names if _matches(name, entry)]
        if not found:
            near = difflib.get_close_matches(entry, names, n=3, cutoff=0.5)
            hint = f"; near: {', '.join(near)}" if near else ""
            problems.append(
                f"{where}: no module is called {entry!r}{hint}; `vitcompress nodes MODEL` lists the names, globs such "
                "as blocks.* are allowed"
            )
        expanded.append(found)
    if problems:
        raise InputError(problems)
    return expanded


def all_blocks(model: nn.Module) -> list[str]:
    """The blocks (or stages) of which `last_block` is the last, in order."""
    last = last_block(model)
    stem = last.rstrip(string.digits)
    if stem != last:
        return [name for name, _ in model.named_modules() if name != stem and name.rstrip(string.digits) == stem]
    parent, dot, _ = last.rpartition(".")  # named by words: those beside it of its kind
    kind = type(model.get_submodule(last))
    beside = model.get_submodule(parent).named_children()
    return [f"{parent}{dot}{name}" for name, module in beside if isinstance(module, kind | Removed)]


def last_block(model: nn.Module) -> str:
    """The module whose output is the last feature map before the final norm, pooling and head.

    What timm's `feature_info` names last, else the last entry of the last list of like modules.
    """
    modules = dict(model.named_modules())
    info: Any = getattr(model, "feature_info", None)
    entries = list(info) if isinstance(info, list | tuple) else []
    if entries and isinstance(entries[-1], dict) and entries[-1].get("module") in modules:
        return str(entries[-1]["module"])
    lists = [
        name
        for name, module in modules.items()
        if name and isinstance(module, nn.Sequential | nn.ModuleList) and _alike(list(module.children()))
    ]
    # Lists inside a block belong to it; the outermost one that ends last holds the blocks.
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if not outer:
        raise InputError(
            "Distillation.node: auto finds no list of blocks here; name a module (see `vitcompress nodes MODEL`)"
        )
    last = outer[-1]
    return f"{last}.{list(dict(modules[last].named_children()))[-1]}"


def _matches(name: str, entry: str) -> bool:
    parts, patterns = name.split("."), entry.split(".")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _alike(children: list[nn.Module]) -> bool:
    # A block that was removed still counts: what stands in its place gives out the features at that depth.
    kept = [child for child in children if not isinstance(child, Removed)]
    like = len({type(child) for child in kept}) == 1
    return len(children) > 1 and like and any(kept[0].children())


class Capture:
    """Records the outputs of named modules as they are computed; `take` hands them over and forgets them.

    With `only_with_grad` forward passes under no_grad or inference mode (evaluations, averaged copies of the model,
    which share the hooks) are not recorded.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], only_with_grad: bool = False) -> None:
        self.only_with_grad = only_with_grad
        self._outputs: dict[str, Tensor] = {}
        self._names = list(dict.fromkeys(names))
        self._handles = [model.get_submodule(name).register_forward_hook(self._hook(name)) for name in self._names]

    def _hook(self, name: str) -> Any:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            if self.only_with_grad and not torch.is_grad_enabled():
                return
            if not isinstance(output, Tensor):
                raise InputError(
                    f"Distillation.node: {name} returns {type(output).__name__}, not a tensor; name a module inside it"
                )
            self._outputs[name] = output

        return record

    def take(self) -> dict[str, Tensor]:
        """Outputs by name since the last call; InputError for a module that the forward pass did not reach."""
        outputs, self._outputs = self._outputs, {}
        missing = [name for name in self._names if name not in outputs]
        if missing:
            raise InputError(
                f"Distillation.node: {', '.join(missing)} has no output in a forward pass of this model; name the "
                "module around it, or another"
            )
        return outputs

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._outputs = {}
