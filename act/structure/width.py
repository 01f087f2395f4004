"""The width of the residual stream: one choice of channels through the whole model.

LayerNorms take their mean and variance over what is left, so a narrower model is not one with zeros in it: it equals
the model whose channels and whose LayerNorms are masked. What reads the stream is fitted to that afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from act.edits import edit_op
from act.errors import InputError
from act.sparsity.channels import RESIDUAL, ChannelGroup, find_groups, prove
from act.sparsity.moments import Moments, input_rows
from act.structure.axes import find_tensor, follow
from act.structure.shrink import free_of_width

_NAMES = ("embed_dim", "num_features", "head_hidden_size")  # attributes in which timm keeps the width


def residual_stream(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> ChannelGroup | str:
    """Every tensor along the residual stream, or why this model has none that can be narrowed.

    With `input_size` [channels, height, width] the group is proved: another order of its channels must not change the
    output.
    """
    groups, reasons = find_groups(model)
    stream = next((group for group in groups if group.kind == RESIDUAL), None)
    if stream is None:
        return reasons["residual stream"]
    if input_size is not None:
        device = next(model.parameters()).device
        image = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0)).to(device)
        if not prove(model, [stream], image)[0]:
            return "something in the model depends on the order of its channels"
    return stream


@edit_op("narrow")
def narrow(model: nn.Module, width: int) -> None:
    """Cut the residual stream to `width` channels, the first ones; which stay is a matter of the tensors."""
    stream = residual_stream(model)
    if isinstance(stream, str) or not 0 < width <= stream.size:
        raise InputError(f"arch.json: the residual stream cannot have {width} channels")
    free_of_width(model)
    keep = torch.arange(width)
    for name, value in kept_channels(model, stream, keep).items():
        owner, _, leaf = name.rpartition(".")
        module, old = model.get_submodule(owner), find_tensor(model, name)
        new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
        setattr(module, leaf, new)
        follow(module)
    whole: Any = model
    for name in _NAMES:
        if getattr(whole, name, None) == stream.size:
            setattr(whole, name, width)


def kept_channels(model: nn.Module, stream: ChannelGroup, kept: Tensor) -> dict[str, Tensor]:
    """The tensors along the stream with the channels `kept` (int64, in order) only, by full name."""
    tensors: dict[str, Tensor] = {}
    for segment in stream.segments:
        before = tensors.get(segment.tensor, find_tensor(model, segment.tensor)).detach()
        tensors[segment.tensor] = before.index_select(segment.axis, kept.to(before.device)).contiguous()
    return tensors


@torch.no_grad()
def channel_scores(model: nn.Module, stream: ChannelGroup, batches: Iterable[Tensor]) -> Tensor:
    """What each channel adds to the outputs of all that read the stream: mean square of the input times the squared
    norm of its weights, relative to each reader's own total, summed; float64 [width]. `batches` [B, C, H, W]."""
    moments = {name: Moments(stream.size, 0, torch.device("cpu")) for name in stream.readers}

    def hook(name: str) -> Any:
        def see(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = input_rows(layer, args[0])
            moments[name].add(rows, rows.new_zeros(len(rows), 0))

        return see

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in stream.readers]
    try:
        for images in batches:
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    total = torch.zeros(stream.size, dtype=torch.float64)
    for name, found in moments.items():
        if found.count:  # a reader whose forward is not called says nothing
            weight = find_tensor(model, f"{name}.weight").detach().double().flatten(1)
            worth = found.hessian(centred=True).diagonal() * weight.square().sum(0)
            total += worth / worth.sum()
    return total
