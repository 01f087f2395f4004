"""What a peer has to offer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from act.backends.base import Images


@dataclass(frozen=True)
class Peer:
    """Another tool. `settings` says how it is called, for the report.

    `missing` gives the reason why it cannot run here and what would help, or None. `quantize(original, images,
    folder)` quantises the FP32 ONNX file with images float32 [1, C, H, W], and returns the file it wrote in `folder`.
    """

    name: str
    settings: str
    missing: Callable[[], str | None]
    quantize: Callable[[Path, Sequence[Images], Path], Path]
