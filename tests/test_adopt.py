"""What a caller's module becomes before it is compressed."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from test_structure import build
from torch import nn

from act.adopt import adopted, ready, remarks
from act.errors import InputError

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Foreign(nn.Module):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda model: nn.DataParallel(torch.compile(model))])
def test_wrappers_are_left_behind(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = build("vit").float()
    given = wrap(model)
    own = adopted(given)
    assert type(own) is type(model) and own is not model
    assert [name for name, _ in own.named_parameters()] == [name for name, _ in model.named_parameters()]
    with torch.no_grad():
        assert torch.equal(own(IMAGES), model(IMAGES))
    assert remarks(given, own) == [f"{type(given).__name__}: the module within is compressed"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_become_float32(dtype: torch.dtype) -> None:
    model = build("vit").to(dtype)
    own = adopted(model)
    assert {parameter.dtype for parameter in own.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}  # the caller's stays as it is
    assert remarks(model, own) == [f"parameters in {str(dtype)[6:]} are computed with in float32"]
    for mine, theirs in zip(own.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs.float())


def test_what_is_as_it_should_be_is_not_remarked() -> None:
    model = build("vit").float()
    assert remarks(model, adopted(model)) == remarks(None, model) == []
    assert ready(model) is model


def test_attention_of_torch_is_remarked() -> None:
    block = nn.TransformerEncoderLayer(8, 2)
    assert remarks(block, adopted(block)) == [
        "1 nn.MultiheadAttention run as the layers qkv and proj: the same function"
    ]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch has TorchScript still
def test_what_cannot_be_changed_or_copied_is_refused() -> None:
    with pytest.raises(InputError, match=r"TorchScript cannot be changed; pass the nn\.Module"):
        adopted(torch.jit.trace(nn.Linear(3, 3), torch.zeros(1, 3)))
    with pytest.raises(InputError, match="lazy parameters"):
        adopted(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(InputError, match=r"cannot be copied with copy\.deepcopy: .*lock"):
        adopted(Foreign())
