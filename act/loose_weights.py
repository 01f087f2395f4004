"""Parameters by which a forward multiplies outside of linear and 2-d convolution layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from act.strategies.base import LayerLeft

# By name: one product is reached through torch, Tensor, torch.nn.functional and operators.
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
_INPUT_FIRST = {"linear"} | _CONVOLUTIONS
_ANY_ORDER = {"einsum", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "tensordot", "bilinear"}
_PRODUCTS = _INPUT_FIRST | _ANY_ORDER | {"multi_head_attention_forward"}


class LooseWeights(TorchFunctionMode):
    """Within it, notes the parameters of `model` that are operands of a product, as they are or as views."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        # A bias has one axis and multiplies nothing.
        self._names = {_storage(value): name for name, value in model.named_parameters() if value.dim() > 1}
        self._found: dict[str, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, and note its operands."""
        kwargs = kwargs or {}
        if (name := getattr(func, "__name__", "")) in _PRODUCTS:
            operands = (*args, *kwargs.values())
            for tensor in _tensors(operands[1:] if name in _INPUT_FIRST else operands):
                if (weight := self._names.get(_storage(tensor))) is not None:
                    self._found[weight] = None
        return func(*args, **kwargs)

    def left(self) -> list[LayerLeft]:
        """One entry for each noted parameter whose module is no linear or 2-d convolution layer."""
        owners = {name: self._model.get_submodule(name.rpartition(".")[0]) for name in self._found}
        return [
            LayerLeft(
                name, f"{type(owner).__name__} multiplies by it itself, not through a linear or 2-d convolution layer"
            )
            for name, owner in owners.items()
            if not isinstance(owner, nn.Linear | nn.Conv2d)
        ]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
