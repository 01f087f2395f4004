"""`nn.MultiheadAttention` with its projections as layers, so that they can be pruned and quantised like any other."""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor, nn
from torch.nn import functional as F

from act.errors import InputError


class LayeredAttention(nn.Module):
    """The function of an `nn.MultiheadAttention`, with its own parameters, through the layers `qkv` and `proj`."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = attention.embed_dim, attention.num_heads, attention.head_dim
        self.batch_first, self.scale = attention.batch_first, attention.head_dim**-0.5
        self.attn_drop = nn.Dropout(attention.dropout)
        self.qkv = _linear(attention.in_proj_weight, attention.in_proj_bias)
        self.proj = _linear(attention.out_proj.weight, attention.out_proj.bias)
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`. `is_causal` only hints at what `attn_mask` says, and is not needed."""
        inputs: tuple[Tensor, ...] = (query,) if query is key and key is value else (query, key, value)
        single = query.dim() == 2  # [tokens, width]
        if single:
            inputs = tuple(x.unsqueeze(0) for x in inputs)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            inputs = tuple(x.transpose(0, 1) for x in inputs)
        q, k, v = (x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2) for x in self._project(inputs))
        mask = _joined(attn_mask, key_padding_mask, q)
        weights = None
        if need_weights:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            weights = self.attn_drop((scores if mask is None else scores + mask).softmax(-1))
            x = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            dropout = self.attn_drop.p if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        x = self.proj(x.transpose(1, 2).flatten(2))
        if single:
            return x.squeeze(0), None if weights is None else weights.squeeze(0)
        return x if self.batch_first else x.transpose(0, 1), weights

    def _project(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """q, k and v [batch, tokens, width] of one input, or of one each."""
        if len(inputs) == 1:
            return self._split(self.qkv(inputs[0]))
        # Layers are compressed for what called them when they were found: never this.
        if type(self.qkv) is not nn.Linear:
            raise InputError("model: calls a compressed nn.MultiheadAttention with one input and with several")
        weights = self._split(self.qkv.weight.t())
        biases = (None,) * 3 if self.qkv.bias is None else self._split(self.qkv.bias)
        return tuple(F.linear(x, w.t(), b) for x, w, b in zip(inputs, weights, biases, strict=True))

    def _split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        return qkv.chunk(3, -1)


def with_layers(model: nn.Module) -> nn.Module:
    """`model` itself, in which each `nn.MultiheadAttention` that can be is a `LayeredAttention`, with its parameters.

    Left as they are: subclasses, those with hooks, with keys or values of another width, and with added keys.
    """
    if _can_be(model):
        return LayeredAttention(model)
    made: dict[nn.Module, LayeredAttention] = {}  # one that is used in several places stays one
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and _can_be(child):
                if child not in made:
                    made[child] = LayeredAttention(child)
                setattr(parent, name, made[child])
    return model


def _can_be(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    if type(module) is not nn.MultiheadAttention or module._forward_hooks or module._forward_pre_hooks:
        return False
    added = module.bias_k is not None or module.bias_v is not None or module.add_zero_attn
    return bool(module._qkv_same_embed_dim) and not added


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
    return layer


def _joined(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
    """What is added to the scores [batch, heads, queries, keys]: both masks, whose true entries are left out."""
    found = None
    if attn_mask is not None:
        shape = (q.shape[0], q.shape[1], *attn_mask.shape[-2:]) if attn_mask.dim() == 3 else attn_mask.shape
        found = _added(attn_mask.reshape(shape), q)
    if key_padding_mask is not None:
        padding = _added(key_padding_mask[:, None, None, :], q)
        found = padding if found is None else found + padding
    return found


def _added(mask: Tensor, q: Tensor) -> Tensor:
    if mask.is_floating_point():
        return mask.to(q.dtype)
    return q.new_zeros(mask.shape).masked_fill(mask, float("-inf"))
