"""What a runtime has to offer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float32]


class Session(Protocol):
    """An opened file, ready to run."""

    def run(self, images: Images) -> npt.NDArray[Any]:
        """Logits [B, classes] of `images`, float32 [B, C, H, W], already normalised."""
        ...


class Backend(Protocol):
    """A runtime. `name` is how recipes and the command line call it."""

    name: str

    def available(self) -> str | None:
        """None when files can be run here, else the reason why not and what would help."""
        ...

    def load(self, path: str | Path, threads: int = 0) -> Session:
        """Open an exported file with `threads` intra-op threads (0: all cores); InputError if it cannot be opened."""
        ...
