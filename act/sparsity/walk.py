"""Walking a dense model and its compressed twin side by side, layer by layer in call order.

Each layer of the twin sees the inputs of the twin compressed so far, and is to be fitted to the *dense* model's output
(asymmetric calibration as in GPTAQ, arXiv 2504.02692). Where that output is added to a residual stream, the target is
the dense stream after the addition, so that the layer makes up for the errors of all before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from act.sparsity.moments import Moments, input_rows, output_rows
from act.sparsity.replay import Block, Seen, probe, see


class Walk:
    """The dense model, its twin, and the inputs (dense, compressed) of the block that the walk has reached.

    `read` returns a new iterator over the same batches each time. Memory: one layer's moments and the input of one
    block for all batches, twice. Raises ValueError for layers that no input reaches or that are called twice.
    """

    def __init__(
        self, dense: nn.Module, model: nn.Module, layers: list[str], read: Callable[[], Iterator[Tensor]]
    ) -> None:
        first = next(read(), None)
        if first is None:
            raise ValueError("no calibration batches")
        plan = probe(model, layers, first)
        self.dense, self.model, self.read = dense, model, read
        self.blocks, self.residual = plan.blocks, plan.residual
        self.cache: list[tuple[Tensor, Tensor]] = []

    def layers(self) -> Iterator[tuple[str, Block]]:
        """Every layer in call order, each once the walk has reached its block."""
        previous: Block | None = None
        for block in self.blocks:
            self._enter(block, previous)
            for name in block.layers:
                yield name, block
            previous = block

    def moments(self, name: str, block: Block, with_skip: bool) -> Moments:
        """Moments of the twin's inputs and the wanted outputs of a layer; ValueError where they are not finite."""
        dense_layer, layer = self._pair(name)
        weight = cast(Tensor, layer.weight)
        moments = Moments(weight[0].numel(), len(weight), weight.device)
        for wanted, given in self._see(name, block, with_skip and name in self.residual):
            y = output_rows(layer, cast(Tensor, dense_layer(wanted.inputs)))
            if wanted.skip is not None and given.skip is not None:
                y = y + output_rows(layer, wanted.skip - given.skip)
            moments.add(input_rows(layer, given.inputs), y)
        if not bool(moments.xx.isfinite().all() and moments.yx.isfinite().all()):
            raise ValueError(f"layer {name!r}: its calibration inputs contain nan or inf")
        return moments

    def _pair(self, name: str) -> tuple[nn.Module, nn.Module]:
        return self.dense.get_submodule(name), self.model.get_submodule(name)

    def _enter(self, block: Block, previous: Block | None) -> None:
        """Bring the cache to the inputs of `block`, from those of `previous` if nothing lies between them."""
        if block.follows and previous is not None:
            pair = self._pair(previous.name)
            for i, inputs in enumerate(self.cache):
                self.cache[i] = pair[0](inputs[0]), pair[1](inputs[1])
            return
        self.cache = []
        if block.name:
            dense, twin = self._pair(block.name)
            for batch in self.read():
                inputs = see(self.dense, batch, dense, False).inputs, see(self.model, batch, twin, False).inputs
                self.cache.append(inputs)

    def _see(self, name: str, block: Block, with_skip: bool) -> Iterator[tuple[Seen, Seen]]:
        """For each batch what the dense layer sees and what the twin's layer sees."""
        dense_layer, layer = self._pair(name)
        dense, twin = (self.dense, self.model) if not block.name else self._pair(block.name)
        pairs = self.cache if block.name else ((batch, batch) for batch in self.read())
        for wanted, given in pairs:
            yield see(dense, wanted, dense_layer, with_skip), see(twin, given, layer, with_skip)


def refit_layers(
    dense: nn.Module, model: nn.Module, layers: list[str], read: Callable[[], Iterator[Tensor]], damping: float
) -> None:
    """Fit the weights and biases of linear or 1x1 convolution `layers` of `model` to the dense model's outputs, in call
    order; `damping` is a ridge towards the present weights, relative to the mean of the moments' diagonal."""
    with torch.no_grad():
        walk = Walk(dense, model, layers, read)
        for name, block in walk.layers():
            layer = cast(nn.Linear | nn.Conv2d, model.get_submodule(name))
            moments = walk.moments(name, block, with_skip=True)
            target = moments.target(layer.weight.detach().flatten(1), layer.bias, damping)
            layer.weight.data.copy_(target.reshape(layer.weight.shape))
            if layer.bias is not None:
                layer.bias.data.copy_(moments.bias(layer.weight.detach().flatten(1)))
