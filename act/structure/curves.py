"""What each size of each group costs in accuracy, measured: one group changed at a time, the output compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from act.models import logits
from act.sparsity.replay import probe
from act.structure.axes import find_tensor


class OutputLoss:
    """KL divergence in nats per image of the model's output from the original's, after some tensors were exchanged.

    Where the model is a plain chain of blocks, those before the first that changed are not computed again: their
    output is kept for every image (the memory of one feature map per block).
    """

    def __init__(self, model: nn.Module, readers: Sequence[str], images: Tensor) -> None:
        self.model, self.images = model, images
        self._blocks: list[str] = []
        self._inputs: dict[str, Tensor] = {}
        with torch.no_grad():
            blocks = probe(model, readers, images[:2]).blocks
            names = [block.name for block in blocks]
            if all(names) and len(set(names)) == len(names) and all(block.follows for block in blocks[1:]):
                self._blocks = names
            handles = [
                model.get_submodule(name).register_forward_pre_hook(self._keep(name), with_kwargs=False)
                for name in self._blocks
            ]
            try:
                self.target = F.log_softmax(logits(model(images)), 1)
            finally:
                for handle in handles:
                    handle.remove()

    def _keep(self, name: str) -> Callable[..., None]:
        def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._inputs[name] = args[0]

        return see

    @torch.no_grad()
    def of(self, group: str, tensors: dict[str, Tensor]) -> float:
        """The loss with `tensors` (full names, all within module `group`) in place of the model's."""
        before = {name: find_tensor(self.model, name).detach().clone() for name in tensors}
        try:
            for name, value in tensors.items():
                find_tensor(self.model, name).copy_(value)
            with self._skipping(group):
                own = F.log_softmax(logits(self.model(self.images)), 1)
        finally:
            for name, value in before.items():
                find_tensor(self.model, name).copy_(value)
        return self._divergence(own)

    @torch.no_grad()
    def of_model(self, model: nn.Module) -> float:
        """The loss of another model on the same images."""
        return self._divergence(F.log_softmax(logits(model(self.images)), 1))

    def _divergence(self, own: Tensor) -> float:
        return max(0.0, float(F.kl_div(own, self.target, log_target=True, reduction="batchmean")))

    @contextmanager
    def _skipping(self, group: str) -> Iterator[None]:
        """Blocks before that of `group` hand on their input; the block gets the input it has in the original."""
        block = next((name for name in self._blocks if f"{group}.".startswith(f"{name}.")), None)
        if block is None:
            yield
            return
        earlier = [self.model.get_submodule(name) for name in self._blocks[: self._blocks.index(block)]]
        handle = self.model.get_submodule(block).register_forward_pre_hook(
            lambda _, args: (self._inputs[block], *args[1:])
        )
        for module in earlier:
            module.forward = lambda x, *args, **kwargs: x
        try:
            yield
        finally:
            handle.remove()
            for module in earlier:
                del module.forward
