"""nn.MultiheadAttention as layers: the same function, whatever it is called with."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from act.edits import apply_edit
from act.torch_attention import LayeredAttention, with_layers

BATCH, TOKENS, WIDTH, HEADS = 2, 5, 12, 3
CAUSAL = torch.triu(torch.ones(TOKENS, TOKENS, dtype=torch.bool), 1)
PADDING = torch.tensor([[False] * 5, [False, False, False, True, True]])
CALLS: list[dict[str, Any]] = [
    {},
    {"need_weights": False},
    {"average_attn_weights": False},
    {"attn_mask": CAUSAL},
    {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
    {"attn_mask": torch.randn(BATCH * HEADS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(2))},
    {"key_padding_mask": PADDING},
    {"key_padding_mask": PADDING, "attn_mask": CAUSAL, "need_weights": False},
]


def _pair(**kwargs: Any) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    original = nn.MultiheadAttention(WIDTH, HEADS, **kwargs).double().eval()
    for parameter in original.parameters():  # biases start as zeros
        nn.init.normal_(parameter, std=0.3)
    layered = with_layers(copy.deepcopy(original))
    assert isinstance(layered, LayeredAttention) and not layered.training
    return original, layered


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("inputs", [1, 3])
@pytest.mark.parametrize("kwargs", [{"batch_first": True}, {}, {"batch_first": True, "bias": False}], ids=str)
def test_the_function_is_the_same(kwargs: dict[str, Any], inputs: int, call: dict[str, Any]) -> None:
    original, layered = _pair(**kwargs)
    shape = (BATCH, TOKENS, WIDTH) if kwargs.get("batch_first") else (TOKENS, BATCH, WIDTH)
    given = [torch.randn(shape, dtype=torch.float64)] * 3 if inputs == 1 else list(torch.randn(3, *shape).double())
    call = {
        key: value.double() if getattr(value, "is_floating_point", bool)() else value for key, value in call.items()
    }
    expected, weights = original(*given, **call)
    found, found_weights = layered(*given, **call)
    torch.testing.assert_close(found, expected)
    if call.get("need_weights", True):
        torch.testing.assert_close(found_weights, weights)
    else:
        assert weights is None and found_weights is None


def test_without_a_batch() -> None:
    original, layered = _pair()
    x = torch.randn(TOKENS, WIDTH).double()
    for left, right in zip(original(x, x, x), layered(x, x, x), strict=True):
        torch.testing.assert_close(left, right)


def test_the_parameters_stay_the_same_objects() -> None:
    original = nn.MultiheadAttention(WIDTH, HEADS)
    layered = with_layers(nn.Sequential(original))[0]
    assert layered.qkv.weight is original.in_proj_weight and layered.qkv.bias is original.in_proj_bias
    assert layered.proj.weight is original.out_proj.weight and layered.proj.bias is original.out_proj.bias
    assert type(layered.qkv) is type(layered.proj) is nn.Linear and layered.training


@pytest.mark.parametrize("kwargs", [{"kdim": 8}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=str)
def test_others_are_left_as_they_are(kwargs: dict[str, Any]) -> None:
    model = nn.Sequential(nn.MultiheadAttention(WIDTH, HEADS, **kwargs))
    assert type(with_layers(model)[0]) is nn.MultiheadAttention


def test_hooks_and_subclasses_are_left_as_they_are() -> None:
    hooked, derived = nn.MultiheadAttention(WIDTH, HEADS), type("Mine", (nn.MultiheadAttention,), {})(WIDTH, HEADS)
    hooked.register_forward_hook(lambda module, inputs, output: output)
    model = with_layers(nn.Sequential(hooked, derived))
    assert list(model) == [hooked, derived]


def test_a_cut_attention_takes_one_input_and_several_alike() -> None:
    _, layered = _pair(batch_first=True)
    model = nn.Sequential(layered)
    apply_edit(model, {"op": "shrink", "attention": {"0": {"heads": 2, "qk": 3, "v": 2}}, "mlp": {}})
    assert layered.qkv.weight.shape == (2 * (3 + 3 + 2), WIDTH) and layered.proj.weight.shape == (WIDTH, 2 * 2)
    x = torch.randn(BATCH, TOKENS, WIDTH).double()
    torch.testing.assert_close(layered(x, x, x)[0], layered(x, x.clone(), x.clone())[0])


def test_one_used_in_several_places_stays_one() -> None:
    shared = nn.MultiheadAttention(WIDTH, HEADS)
    model = with_layers(nn.ModuleDict({"a": nn.Sequential(shared, shared), "b": nn.Sequential(shared)}))
    assert model["a"][0] is model["a"][1] is model["b"][0] and type(model["b"][0]) is LayeredAttention
