"""Calibration images as strategies read them: re-iterable batches of pixels on the run's device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from act.errors import InputError

if TYPE_CHECKING:
    from act.context import Context

BATCH = 32  # images at a time; small enough that ViT-B's activations stay well under 2 GB


class CalibrationImages:
    """Streams `images` training images as float32 [B, C, H, W], decoded anew on every pass."""

    def __init__(self, ctx: Context, images: int, batch_size: int = BATCH) -> None:
        if ctx.data is None:
            raise InputError("data.train: calibration needs images; give data.train or data.calibration a folder")
        self._batches = ctx.data.calibration(images, batch_size)
        self._device = ctx.device
        self.count = images

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self._batches:
            yield batch.images.to(self._device)
