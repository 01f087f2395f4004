"""The driver over a model: what it changes, what it finds out by itself, what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from act.sparsity.masks import from_gemm_rows, gemm_rows, nm_mask, nm_violations
from act.sparsity.moments import input_rows, output_rows
from act.sparsity.oneshot import Criterion, oneshot_prune
from act.sparsity.replay import probe


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(torch.nn.functional.gelu(self.fc1(self.norm(x))))


class Toy(nn.Module):
    """A convolutional stem, residual blocks in two lists with a projection between them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, stride=2, padding=1)
        self.early = nn.ModuleList(Block(16) for _ in range(2))
        self.between = nn.Linear(16, 24, bias=False)
        self.late = nn.Sequential(*(Block(24) for _ in range(2)))
        self.head = nn.Linear(24, 5)
        self.unused = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.early:
            x = block(x)
        return self.head(self.late(self.between(x)).mean(1))


BLOCKS = ["early.0", "early.1", "late.0", "late.1"]
LAYERS = ["stem", "between", *(f"{block}.{fc}" for block in BLOCKS for fc in ("fc1", "fc2"))]


@pytest.fixture
def toy() -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    mix = torch.randn(4, 4)
    return Toy(), [torch.einsum("ij,bjhw->bihw", mix, torch.randn(8, 4, 8, 8)) for _ in range(4)]


def error(model: nn.Module, dense: nn.Module, batches: list[Tensor]) -> float:
    with torch.no_grad():
        return sum(float((model.eval()(x) - dense.eval()(x)).square().sum()) for x in batches)


def test_second_order_beats_masks_alone_on_new_inputs(toy: tuple[nn.Module, list[Tensor]]) -> None:
    dense, batches = toy
    errors = {}
    criteria: list[Criterion] = ["magnitude", "wanda", "sparsegpt"]
    for criterion in criteria:
        model = copy.deepcopy(dense)
        masks = oneshot_prune(model, LAYERS, batches[:3], 2, 4, criterion)
        assert list(masks) == LAYERS
        for name, mask in masks.items():
            weight = model.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            assert mask.shape == weight.shape
            assert nm_violations(weight, 2, 4) == 0
            assert not weight[~mask].any()
        for untouched in ("head", "unused"):
            assert torch.equal(model.get_submodule(untouched).weight, dense.get_submodule(untouched).weight)
        errors[criterion] = error(model, dense, batches[3:])
    assert errors["sparsegpt"] < 0.65 * min(errors["wanda"], errors["magnitude"])


def test_magnitude_is_the_plain_mask_and_needs_no_data(toy: tuple[nn.Module, list[Tensor]]) -> None:
    dense, _ = toy
    model = copy.deepcopy(dense)
    mask = oneshot_prune(model, ["head"], [], 2, 4, "magnitude")["head"]
    head = dense.get_submodule("head")
    assert isinstance(head.weight, Tensor)
    assert torch.equal(mask, nm_mask(head.weight.abs(), 2, 4))
    assert torch.equal(model.get_submodule("head").weight, head.weight * mask)


def test_rows_of_a_convolution_are_its_matrix_product() -> None:
    layer = nn.Conv2d(4, 8, (3, 2), stride=2, padding=1, dilation=(1, 2))
    x = torch.randn(2, 4, 9, 7)
    assert layer.bias is not None
    product = input_rows(layer, x) @ gemm_rows(layer.weight).T + layer.bias
    assert torch.allclose(product, output_rows(layer, layer(x)), atol=1e-5)
    assert torch.equal(from_gemm_rows(gemm_rows(layer.weight), layer.weight.shape), layer.weight)


def test_probe_finds_call_order_blocks_and_residuals(toy: tuple[nn.Module, list[Tensor]]) -> None:
    dense, batches = toy
    plan = probe(dense, LAYERS[::-1], batches[0])
    found = [(block.name, block.follows, block.layers[0]) for block in plan.blocks]
    assert found == [
        ("", False, "stem"),
        ("early.0", False, "early.0.fc1"),
        ("early.1", True, "early.1.fc1"),
        ("", False, "between"),
        ("late.0", False, "late.0.fc1"),
        ("late.1", True, "late.1.fc1"),
    ]
    assert plan.residual == {f"{block}.fc2" for block in BLOCKS}


def test_replaying_blocks_equals_running_the_whole_model(
    toy: tuple[nn.Module, list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, batches = toy
    replayed, whole = copy.deepcopy(dense), copy.deepcopy(dense)
    oneshot_prune(replayed, LAYERS, batches, 2, 4)
    monkeypatch.setattr("act.sparsity.replay._parents", lambda _, layers: dict.fromkeys(layers, ""))
    oneshot_prune(whole, LAYERS, batches, 2, 4)
    for name, parameter in replayed.named_parameters():
        torch.testing.assert_close(parameter, whole.get_parameter(name), rtol=1e-4, atol=1e-5)


def test_later_layers_make_up_for_earlier_ones(toy: tuple[nn.Module, list[Tensor]]) -> None:
    """With nothing left to remove, fc2 is still fitted to the dense stream: pruning fc1 before must move it."""
    dense, batches = toy
    model = copy.deepcopy(dense)
    block = model.get_submodule("early.0")
    masks = oneshot_prune(model, ["early.0.fc1", "early.0.fc2"], batches, 2, 4)
    stale = copy.deepcopy(dense)
    for name, mask in masks.items():
        layer = stale.get_submodule(name)
        assert isinstance(layer.weight, Tensor)
        layer.weight.data.mul_(mask)
    assert error(model, dense, batches) < 0.5 * error(stale, dense, batches)
    assert not torch.equal(block.get_submodule("fc2").get_parameter("bias"), dense.get_parameter("early.0.fc2.bias"))


def test_leaves_mode_hooks_and_gradients_as_they_were(toy: tuple[nn.Module, list[Tensor]]) -> None:
    model, batches = toy
    model.train()
    model.get_submodule("late").eval()
    lines: list[str] = []
    oneshot_prune(model, ["late.0.fc1"], lambda: iter(batches), 2, 4, progress=lines.append)
    assert model.training and not model.get_submodule("late").training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert len(lines) == 1 and lines[0].startswith("1/1 late.0.fc1: sparsegpt 2:4")


@pytest.mark.parametrize(
    ("layers", "change", "message"),
    [
        (["unused", "head"], {}, "no input reaches these layers.*unused"),
        (["nowhere"], {}, "no such module"),
        (["early.0.norm"], {}, "it is a LayerNorm"),
        (["head"], {"m": 16}, "24 inputs"),
        (["head"], {"criterion": "best"}, "one of magnitude, wanda, sparsegpt"),
        (["head"], {"batches": []}, "no calibration batches"),
        (["head"], {"batches": iter([torch.zeros(1, 4, 8, 8)])}, "one-pass iterator"),
        (["head"], {"batches": [torch.full((1, 4, 8, 8), torch.nan)]}, "'head': its calibration inputs contain nan"),
    ],
)
def test_bad_input_is_refused(
    toy: tuple[nn.Module, list[Tensor]], layers: list[str], change: dict[str, object], message: str
) -> None:
    model, batches = toy
    before = copy.deepcopy(model.state_dict())
    arguments = {"batches": batches, "n": 2, "m": 4, **change}
    with pytest.raises(ValueError, match=message):
        oneshot_prune(model, layers, **arguments)  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_called_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.fc(self.fc(x)))

    with pytest.raises(ValueError, match=r"more than once in a forward: fc"):
        oneshot_prune(Twice(), ["fc"], [torch.ones(2, 8)], 2, 4)
