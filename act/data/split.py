"""The images of one role (train, val or calibration) read from files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from act.data.batch import Batch
from act.data.loading import BadImages, EpochSampler, EvalImages, TrainImages, make_loader
from act.data.preprocess import Preprocess, TrainTransform
from act.data.source import ImageSource

# Set apart the random choices that one seed makes.
CHOICE, CALIBRATION = 1, 2


@dataclass(frozen=True)
class Batches:
    """Batches that can be iterated any number of times, each time from the start; `count` None where unknown."""

    start: Callable[[], Iterator[Batch]]
    count: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self.start()

    def __len__(self) -> int:
        if self.count is None:
            raise TypeError("the number of batches of this loader is not known beforehand")
        return self.count


class Split(Protocol):
    """What a `DataBundle` asks of the images of one role, whether they come from files or from a user's loader."""

    labelled: bool
    class_names: list[str] | None
    top_label: int  # the highest class index known of, -1 when unlabelled
    input_size: tuple[int, int, int]  # [channels, height, width]

    @property
    def images(self) -> int | None: ...

    def train_loader(self, batch_size: int) -> DataLoader[Batch] | Batches: ...

    def train(self, batch_size: int, epoch: int, skip_batches: int) -> Batches: ...

    def in_order(self, batch_size: int) -> Batches: ...

    def sample(self, images: int, batch_size: int) -> Batches: ...

    def fingerprint(self) -> str: ...

    def skipped(self) -> list[str]: ...


class FileSplit:
    """Images of an `ImageSource`, all of them or a choice of `limit` by `seed`."""

    def __init__(
        self,
        source: ImageSource,
        bad: BadImages,
        preprocess: Preprocess,
        augment: TrainTransform,
        workers: int,
        seed: int,
        limit: int | None = None,
    ) -> None:
        self.source, self.bad, self.preprocess, self.augment = source, bad, preprocess, augment
        self.workers, self.seed = workers, seed
        self.input_size = preprocess.input_size
        self.labelled, self.class_names, self.top_label = source.labelled, source.class_names, source.top_label
        self.indices = _choice(len(source), limit, seed)
        self._loader: tuple[int, DataLoader[Batch], EpochSampler] | None = None

    @property
    def images(self) -> int:
        return len(self.indices)

    def train_loader(self, batch_size: int) -> DataLoader[Batch]:
        return self._train(batch_size)[0]

    def train(self, batch_size: int, epoch: int, skip_batches: int) -> Batches:
        loader, sampler = self._train(batch_size)

        def start() -> Iterator[Batch]:
            sampler.set_epoch(epoch)
            sampler.skip = skip_batches * batch_size
            try:
                yield from loader
            finally:
                sampler.skip = 0

        return Batches(start, max(0, -(-self.images // batch_size) - skip_batches))

    def in_order(self, batch_size: int) -> Batches:
        return self._eval(self.indices, batch_size)

    def sample(self, images: int, batch_size: int) -> Batches:
        order = np.random.default_rng((self.seed, CALIBRATION)).permutation(self.indices)
        return self._eval(order[:images], batch_size)

    def fingerprint(self) -> str:
        return f"{self.source.fingerprint()}:{self.images}"

    def skipped(self) -> list[str]:
        return self.bad.names()

    def _train(self, batch_size: int) -> tuple[DataLoader[Batch], EpochSampler]:
        # Kept for the next epoch, which finds the workers already running.
        if self._loader is None or self._loader[0] != batch_size:
            images = TrainImages(self.bad, self.source, self.indices, self.augment, self.seed)
            sampler = EpochSampler(len(images), self.seed)
            self._loader = batch_size, make_loader(images, batch_size, self.workers, sampler), sampler
        return self._loader[1], self._loader[2]

    def _eval(self, indices: NDArray[np.int64], batch_size: int) -> Batches:
        images = EvalImages(self.bad, self.source, indices, self.preprocess)
        # No more workers than batches: a process costs more than the few images of a small calibration set.
        loader = make_loader(images, batch_size, min(self.workers, len(images) // batch_size))

        def start() -> Iterator[Batch]:
            count = 0
            for batch in loader:
                if len(batch):
                    count += 1
                    yield batch
            if not count:
                self.bad.refuse_all(len(images))

        return Batches(start, len(loader))


def _choice(count: int, limit: int | None, seed: int) -> NDArray[np.int64]:
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng((seed, CHOICE)).permutation(count)[:limit])
