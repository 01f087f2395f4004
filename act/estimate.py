"""How much memory a stage will take, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from act.models import taking
from act.recipe.schema import TrainConfig
from act.strategies.base import Strategy
from act.train.attention import to_write_out, written_out

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
    B times what autograd keeps of one image for the backward pass, measured on one. A teacher adds 4 P and its two
    largest outputs, since it keeps nothing. Without training: 4 P and the two largest outputs. P: parameters, B: batch
    size. Masks, quantisers (a byte per quantised input) and compared features come on top.
    """
    outputs = output_sizes(model, input_size)
    parameters = _FLOAT * sum(p.numel() for p in model.parameters())
    batch = (train.batch_size if train is not None else None) or batch_size
    passing = _FLOAT * batch * sum(sorted(outputs.values())[-2:])
    if train is None:
        return Memory(parameters, 0, 0, 0, passing, 0)
    return Memory(
        weights=parameters,
        gradients=parameters,
        optimizer=parameters * optimizer_states(train.optimizer),
        averages=parameters if train.ema_decay is not None else 0,
        activations=batch * kept_bytes(model, input_size, train.amp == "bf16"),
        teacher=parameters + passing if objectives else 0,
    )


def kept_bytes(model: nn.Module, input_size: tuple[int, int, int], half: bool) -> int:
    """Bytes that a forward of one image keeps for the backward pass, parameters not counted; `half`: under bf16."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # Held, so that no later tensor gets the same address.
            kept[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = model.training
    try:
        model.eval().requires_grad_(True)
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        plain = written_out(to_write_out([model], device, half))
        with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half), plain, hooks:
            model(torch.zeros(1, *input_size, device=device))
    finally:
        model.train(training)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    # Weights cast for autocast are kept as well, but once and not per image.
    shapes = {tuple(parameter.shape) for parameter in model.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    return sum(size for tensor, size in kept.values() if tuple(tensor.shape) not in shapes)


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
    """One forward of one black image, then remove `hooks`; the model's mode is kept. InputError if it takes no such
    image."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    training = model.training
    try:
        model.eval()
        with torch.no_grad(), taking(input_size):
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
