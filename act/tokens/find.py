"""Which models can merge tokens: found by running the model once, not by class names.

Their blocks follow one another directly, each is `x + attention(norm(x))` and then `x + mlp(norm(x))` on tokens
[B, N, C], the attention is one fused attention over all tokens without a position bias, and what comes after the
last block takes any number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from act.tokens.blocks import scaled

_PARTS = ("norm1", "attn", "norm2", "mlp")


@dataclass(frozen=True)
class Mergeable:
    """A model's blocks in call order, the tokens [B, tokens, C] that the first gets, and how many lead as a prefix."""

    blocks: list[str]
    tokens: int
    prefix: int


@dataclass
class _Seen:
    """One call of a block."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    masks: list[bool] = field(default_factory=list)  # for each fused attention over all tokens: is there a mask?


class _Attentions(TorchFunctionMode):
    """Notes fused attentions with the block that is running."""

    def __init__(self) -> None:
        super().__init__()
        self.running: _Seen | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self.running is not None:
            tokens, masked = self.running.args[0].shape[1], len(args) > 3 or kwargs.get("attn_mask") is not None
            if args[0].shape[2] == args[1].shape[2] == tokens:
                self.running.masks.append(masked or bool(kwargs.get("is_causal")))
        return func(*args, **kwargs)


def mergeable(model: nn.Module, input_size: tuple[int, int, int]) -> Mergeable | str:
    """The blocks that can merge tokens, or the reason why this model cannot."""
    prefix = getattr(model, "num_prefix_tokens", None)
    if not isinstance(prefix, int):
        return "the model does not say which tokens are no patches (num_prefix_tokens)"
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            image = torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0))
            image = image.to(next(model.parameters()).device)
            calls, output = _run(model, image)
            if not calls:
                return "it has no blocks of norm1, attn, norm2 and mlp"
            for before, call in zip([None, *calls], calls, strict=False):
                reason = _reason(model.get_submodule(call.name), call, before)
                if reason is not None:
                    return f"{call.name}: {reason}"
            reason = _rest(model, image, calls[-1].name, output)
    finally:
        model.train(training)
    return reason or Mergeable([call.name for call in calls], int(calls[0].args[0].shape[1]), prefix)


def _run(model: nn.Module, image: Tensor) -> tuple[list[_Seen], Any]:
    """The calls of every module with the parts of a block, in order, and the model's output."""
    calls: list[_Seen] = []
    watch = _Attentions()
    handles = []
    for name, module in model.named_modules():
        if not all(isinstance(getattr(module, part, None), nn.Module) for part in _PARTS):
            continue

        def enter(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            calls.append(_Seen(name, args, kwargs))
            watch.running = calls[-1]

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            calls[-1].output = output
            watch.running = None

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        with watch:
            output = model(image)
    finally:
        for handle in handles:
            handle.remove()
    return calls, output


def _reason(block: nn.Module, call: _Seen, before: _Seen | None) -> str | None:
    given = call.args[0] if call.args else None
    if not isinstance(given, Tensor) or given.dim() != 3:
        return "its input is no sequence of tokens [batch, tokens, channels]"
    if any(value is not None and value is not False for value in (*call.args[1:], *call.kwargs.values())):
        return "it takes more than the tokens (a grid, a position bias or a rotation), which would no longer fit them"
    if len(call.masks) != 1:
        return "its attention is not one fused attention (scaled_dot_product_attention) over all tokens"
    if call.masks[0]:
        return "its attention has a bias for each pair of positions, and merged tokens have no position"
    if before is not None and before.output is not given:
        return f"something lies between it and {before.name}, which may need every token"
    plain = given + scaled(block, 1, block.attn(block.norm1(given)))  # type: ignore[operator]
    plain = plain + scaled(block, 2, block.mlp(block.norm2(plain)))  # type: ignore[operator]
    same = isinstance(call.output, Tensor) and plain.shape == call.output.shape
    return None if same and torch.allclose(plain, call.output, atol=1e-4) else "it is no pre-norm block"


def _rest(model: nn.Module, image: Tensor, last: str, output: Any) -> str | None:
    """Why what follows the last block needs every token, None if it takes one less."""
    handle = model.get_submodule(last).register_forward_hook(lambda module, args, tokens: tokens[:, :-1])
    try:
        fewer = model(image)
    except Exception as error:  # a reshape, a convolution or an addition of positions can fail in any way
        return f"what follows {last} needs every token ({type(error).__name__})"
    finally:
        handle.remove()
    same = isinstance(fewer, Tensor) and fewer.shape == output.shape
    return None if same else f"what follows {last} gives another output for fewer tokens"
