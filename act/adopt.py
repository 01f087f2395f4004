"""A caller's module, made ready to be compressed."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from act.errors import InputError
from act.torch_attention import LayeredAttention, with_layers

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def adopted(model: nn.Module) -> nn.Module:
    """A copy of `model`, `ready`.

    InputError for a module that cannot be changed or copied: TorchScript, parameters without a shape, foreign objects.
    """
    own = unwrapped(model)
    if isinstance(own, torch.jit.ScriptModule):
        raise InputError("model: a module of TorchScript cannot be changed; pass the nn.Module that it was made from")
    if any(isinstance(parameter, UninitializedParameter) for parameter in own.parameters()):
        raise InputError("model: has lazy parameters without a shape; call its forward once before it is compressed")
    try:
        copied = copy.deepcopy(own)
    except Exception as error:  # as many ways as there are objects that a module can hold
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"model: cannot be copied with copy.deepcopy: {reason}") from error
    return ready(copied)


def ready(model: nn.Module) -> nn.Module:
    """`model` itself, without wrappers, in float32, with attention as layers."""
    return with_layers(unwrapped(model).float())


def unwrapped(model: nn.Module) -> nn.Module:
    """What `torch.compile`, DataParallel or DistributedDataParallel was called with; else `model`."""
    inner = model.module if isinstance(model, _WRAPPERS) else getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def remarks(given: nn.Module | None, original: nn.Module) -> list[str]:
    """What `adopted` changed, in words; `given` None: nothing but attention can have been."""
    lines = []
    if given is not None:
        if unwrapped(given) is not given:
            lines.append(f"{type(given).__name__}: the module within is compressed")
        kinds = {str(p.dtype).removeprefix("torch.") for p in given.parameters() if p.is_floating_point()} - {"float32"}
        lines += [f"parameters in {kind} are computed with in float32" for kind in sorted(kinds)]
    if layered := sum(isinstance(module, LayeredAttention) for module in original.modules()):
        lines.append(f"{layered} nn.MultiheadAttention run as the layers qkv and proj: the same function")
    return lines
