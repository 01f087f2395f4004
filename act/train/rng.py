"""Random number generators: seeded, saved, and kept apart for the data and for the model."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class RandomState:
    """The state of Python's, NumPy's, torch's and, where there are any, the CUDA generators."""

    python: Any
    numpy: Any
    torch: Tensor
    cuda: list[Tensor]


def seed_everything(*parts: int) -> None:
    """Seed every generator from a tuple of integers; different tuples give unrelated streams."""
    words = np.random.SeedSequence([part % 2**32 for part in parts]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # the global generator is the one that third-party augmentations draw from
    torch.manual_seed(int(words[2]))


def get_random(cuda: bool = True) -> RandomState:
    """A snapshot; `cuda=False` leaves the device generators out (reading them waits for the device)."""
    with_cuda = cuda and torch.cuda.is_available()
    return RandomState(
        python=random.getstate(),
        numpy=np.random.get_state(legacy=False),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all() if with_cuda else [],
    )


def set_random(state: RandomState) -> None:
    """Put a snapshot back, for as many GPUs as there are here and were there."""
    random.setstate(state.python)
    np.random.set_state(state.numpy)
    torch.set_rng_state(state.torch)
    for index, part in enumerate(state.cuda[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(part, index)


class OwnRandom:
    """A stream of random numbers of one's own: inside `with own.swapped():` the global generators are this one's.

    Loading data thus never draws from the generators that the model's dropout uses, and a run that resumes in the
    middle of an epoch finds both as they were.
    """

    def __init__(self, *seed: int) -> None:
        before = get_random(cuda=False)
        seed_everything(*seed)
        self.state = get_random(cuda=False)
        set_random(before)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        before = get_random(cuda=False)
        set_random(self.state)
        try:
            yield
        finally:
            self.state = get_random(cuda=False)
            set_random(before)


def pack(state: RandomState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A snapshot as tensors and plain JSON, since nothing of a run is pickled."""
    version, words, gauss = state.python
    tensors = {"torch": state.torch, "python": torch.tensor(words, dtype=torch.int64)}
    tensors["numpy"] = torch.from_numpy(state.numpy["state"]["key"].astype(np.int64))
    tensors.update({f"cuda.{index}": part.cpu() for index, part in enumerate(state.cuda)})
    plain = {
        "python": [version, gauss],
        "numpy": [state.numpy["bit_generator"], int(state.numpy["state"]["pos"])],
        "numpy_gauss": [int(state.numpy["has_gauss"]), float(state.numpy["gauss"])],
    }
    return tensors, plain


def unpack(tensors: dict[str, Tensor], plain: dict[str, Any]) -> RandomState:
    """The snapshot that `pack` took apart."""
    version, gauss = plain["python"]
    generator, position = plain["numpy"]
    key = tensors["numpy"].numpy().astype(np.uint32)
    has_gauss, numpy_gauss = plain["numpy_gauss"]
    cuda = [tensors[name] for name in sorted((n for n in tensors if n.startswith("cuda.")), key=_cuda_index)]
    return RandomState(
        python=(version, tuple(tensors["python"].tolist()), gauss),
        numpy={
            "bit_generator": generator,
            "state": {"key": key, "pos": position},
            "has_gauss": has_gauss,
            "gauss": numpy_gauss,
        },
        torch=tensors["torch"],
        cuda=cuda,
    )


def _cuda_index(name: str) -> int:
    return int(name.removeprefix("cuda."))
