"""Forwards of a model that start at the block where a change begins, from what the block before it gave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from act.models import logits
from act.sparsity.replay import probe

_TOLERANCE = 1e-5  # of the largest logit: how exactly a shortened forward must repeat the whole one


class _Stop(Exception):
    """Ends a forward early: nothing after this point is needed."""


class Forwards:
    """Runs `model` on `batches`, skipping the blocks in front of the changed layer.

    One block's outputs are kept at a time, so that layers have to be asked for in the order of `start`. A skipped block
    returns zeros, the last one what it gave before. Whether the logits stay the same, that is, no other way leads
    around the blocks, is checked on the first batch before it is relied on; where they do not, fewer are skipped.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], batches: Sequence[Tensor]) -> None:
        self.model, self.batches = model, batches
        self.blocks: list[str] = []
        self._starts = dict.fromkeys(layers, 0)
        try:
            with torch.no_grad():
                plan = probe(model, layers, batches[0])
        except ValueError:
            plan = None  # a layer that is called twice, or from elsewhere: no block can be told to be over
        if plan is not None:
            times = Counter(block.name for block in plan.blocks)
            for block in plan.blocks:
                self._starts |= dict.fromkeys(block.layers, len(self.blocks))
                if block.name and times[block.name] == 1:
                    self.blocks.append(block.name)
        self._skipped = 0  # blocks whose work is kept
        self._given: list[Tensor] = []  # by the last of them, for each batch
        self._shapes: list[list[torch.Size]] = []  # of what each of them gives, for each batch
        self._whole = self._logits(0)

    def start(self, layers: Sequence[str]) -> int:
        """How many blocks are over when the first of `layers` is called."""
        return min(self._starts[layer] for layer in layers)

    def work(self, start: int) -> int:
        """Blocks that a forward from `start` runs, and one for everything outside of them."""
        return len(self.blocks) - min(start, len(self.blocks)) + 1

    def advance(self, start: int) -> None:
        """Skip `start` blocks from now on. The model must be untreated."""
        while self._skipped < min(start, len(self.blocks)):
            before = self._given
            outputs = [self._output(index, self.blocks[self._skipped]) for index in range(len(self.batches))]
            if all(isinstance(output, Tensor) for output in outputs):
                self._shapes.append([output.shape for output in outputs])
                self._skipped, self._given = self._skipped + 1, outputs
                difference = float((self._logits(0) - self._whole).abs().max())
                if difference <= _TOLERANCE * float(self._whole.abs().max()):
                    continue
                self._skipped, self._given = self._skipped - 1, before
            self.blocks = self.blocks[: self._skipped]  # something leads around this one: it stays, and all after it

    def outputs(self) -> Iterator[Tensor]:
        """The logits [B, classes] of each batch, from the block on to which `advance` came."""
        return (self._logits(index) for index in range(len(self.batches)))

    def _logits(self, index: int) -> Tensor:
        with torch.no_grad(), self._skipping(index):
            return logits(self.model(self.batches[index]))

    def _output(self, index: int, block: str) -> Any:
        """What `block` returns on a batch."""
        caught: list[Any] = []

        def leave(_: nn.Module, __: Any, output: Any) -> None:
            caught.append(output)
            raise _Stop

        handle = self.model.get_submodule(block).register_forward_hook(leave)
        try:
            with suppress(_Stop):
                self._logits(index)
        finally:
            handle.remove()
        return caught[0]

    @contextmanager
    def _skipping(self, index: int) -> Iterator[None]:
        skipped = [self.model.get_submodule(name) for name in self.blocks[: self._skipped]]
        try:
            for module, shapes in zip(skipped, self._shapes, strict=False):
                last = module is skipped[-1]
                module.forward = partial(_skipped, self._given[index], None if last else shapes[index])
            yield
        finally:
            for module in skipped:
                del module.forward


def _skipped(given: Tensor, shape: torch.Size | None, *args: Any, **kwargs: Any) -> Tensor:
    """The forward of a skipped block; a copy, since what comes next may change its input in place."""
    return given.clone() if shape is None else given.new_zeros(shape)
