"""How much memory a stage will take, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from act.recipe.schema import TrainConfig
from act.strategies.base import Strategy

_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors, in the terms of the estimate; the process itself (Python, libraries) comes on top."""

    weights: int
    gradients: int
    optimizer: int
    averages: int
    activations: int
    teacher: int

    @property
    def total(self) -> int:
        """The sum of all terms."""
        return self.weights + self.gradients + self.optimizer + self.averages + self.activations + self.teacher

    @property
    def formula(self) -> str:
        """The sum written out, in megabytes (10^6 bytes)."""
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimiser": self.optimizer,
            "EMA": self.averages,
            "activations": self.activations,
            "teacher": self.teacher,
        }
        return " + ".join(f"{name} {size / 1e6:.0f}" for name, size in parts.items() if size)


def estimate_memory(
    model: nn.Module,
    input_size: tuple[int, int, int],
    train: TrainConfig | None,
    batch_size: int,
    objectives: Sequence[Strategy],
) -> Memory:
    """Memory of one stage of `model` on images [channels, height, width].

    Training: 4 P of weights, 4 P of gradients, 4 P per optimiser state (2 for Adam, 1 for momentum), 4 P of EMA, and
    B times the outputs of all leaf modules, kept for the backward pass (2 bytes per value with bf16). A teacher adds
    4 P and its two largest outputs, since it keeps nothing. Without training: 4 P and the two largest outputs.
    P: parameters, B: batch size. What happens inside a fused attention kernel is not counted.
    """
    outputs = output_sizes(model, input_size)
    parameters = _FLOAT * sum(p.numel() for p in model.parameters())
    batch = (train.batch_size if train is not None else None) or batch_size
    passing = _FLOAT * batch * sum(sorted(outputs.values())[-2:])
    if train is None:
        return Memory(parameters, 0, 0, 0, passing, 0)
    value_bytes = 2 if train.amp == "bf16" else _FLOAT
    return Memory(
        weights=parameters,
        gradients=parameters,
        optimizer=parameters * optimizer_states(train.optimizer),
        averages=parameters if train.ema_decay is not None else 0,
        activations=value_bytes * batch * sum(outputs.values()),
        teacher=parameters + passing if objectives else 0,
    )


def output_sizes(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, int]:
    """Values in the output of each leaf module for one image, summed over its calls."""
    sizes: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            # Dropout in eval mode and identities hand on the tensor they got, which another leaf has counted.
            if isinstance(output, Tensor) and not any(output is given for given in inputs):
                sizes[name] = sizes.get(name, 0) + output.numel()

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    hooks = [module.register_forward_hook(count(name)) for name, module in leaves]
    run_once(model, input_size, hooks)
    return sizes


def run_once(model: nn.Module, input_size: tuple[int, int, int], hooks: Sequence[Any]) -> None:
    """One forward of one black image, then remove `hooks`; the model's mode is kept."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, *input_size, device=device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()


def optimizer_states(name: str) -> int:
    """How many tensors of the weights' size a timm optimiser keeps: counted after one step on a small matrix."""
    import timm.optim

    weight = nn.Parameter(torch.ones(8, 8))
    weight.grad = torch.ones(8, 8)
    try:
        optimizer: Any = timm.optim.create_optimizer_v2([weight], opt=name, lr=1e-3)
        optimizer.step()
    except Exception:  # one that needs a closure, a GPU or another package: as much as Adam keeps
        return 2
    return sum(isinstance(value, Tensor) and value.numel() == 64 for value in optimizer.state[weight].values())
