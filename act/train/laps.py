"""Where the time of a training step goes."""

from __future__ import annotations

import time

import torch

IMAGES, FORWARD, LOSSES, BACKWARD, UPDATE = "images", "forward", "losses", "backward", "update"
PARTS = {
    IMAGES: "waiting for images",
    FORWARD: "forward",
    LOSSES: "teachers and losses",
    BACKWARD: "backward",
    UPDATE: "update of weights and masks",
}
EVERY = 8  # steps; a GPU has to be waited for after each part, which the other steps are spared
_FIRST = 1  # the step before is no measure: workers start and kernels are chosen in it
_COUNT = "steps"


class Laps:
    """Seconds of the parts of every `EVERY`-th step, evaluations and checkpoints left out.

    `sums` has them by part and how many steps they are of; it is plain JSON and part of a training's saved state.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums: dict[str, float] = {}
        self._device = device
        self._mark: float | None = None  # None: this step is not measured

    def start(self, step: int) -> None:
        """Begin step `step`, counted from 0."""
        self._mark = None
        if step % EVERY == _FIRST:
            self.sums[_COUNT] = self.sums.get(_COUNT, 0) + 1
            self._mark = self._now()

    def lap(self, part: str) -> None:
        """The time since the last call belongs to `part`."""
        if self._mark is not None:
            now = self._now()
            self.sums[part] = self.sums.get(part, 0.0) + now - self._mark
            self._mark = now

    def per_step(self) -> dict[str, float]:
        """Mean seconds of each part; empty where no step was measured."""
        count = self.sums.get(_COUNT, 0)
        return {part: self.sums[part] / count for part in PARTS if part in self.sums}

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
