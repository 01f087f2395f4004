"""A packed file opened for scoring: the torch model is rebuilt from it, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from act.backends.base import Images
from act.rebuild import load_packed_model
from act.storage.file import read_packed
from act.verify.parity import torch_logits


class PackedSession:
    """A packed file and the `arch.json` beside it, run by torch with `threads` threads (0: as many as torch has).

    `base` is the uncompressed model to edit in place, for a file whose `arch.json` names none.
    """

    def __init__(self, path: str | Path, threads: int = 0, base: nn.Module | None = None) -> None:
        self._model = load_packed_model(read_packed(path), base)
        self._threads = threads

    def run(self, images: Images) -> npt.NDArray[Any]:
        """Logits [B, classes] of `images`, float32 [B, C, H, W]."""
        with _threads(self._threads):
            return torch_logits(self._model, images)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
