"""From an image source to a torch DataLoader: order, augmentation and broken images, independent of the workers."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from act.data.batch import BadBatch, Batch, own_text
from act.data.decode import UNREADABLE
from act.data.preprocess import Preprocess, TrainTransform, eval_transform
from act.data.source import ImageSource
from act.data.workers import heed_reader_only
from act.errors import AGAIN, FaultError

Sample = tuple[Tensor, int]

# What fails for every image, or for none a moment later, is no reason to leave one out.
_NOT_THE_IMAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENODEV)


class TooManyBadImages(BadBatch):
    """More unreadable images than the recipe allows; its one line names some of them."""


class ReadFault(FaultError):
    """The machine, not the image, keeps an image from being read."""

    def __init__(self, problem: str) -> None:
        super().__init__(own_text(type(self), problem))


class BadImages:
    """Which images of a source turned out unreadable; one byte each in memory that the workers share.

    Flags, not a list of messages: an image met again by another worker or in a later epoch counts once.
    """

    def __init__(self, source: ImageSource, limit: int, key: str) -> None:
        self._source, self._limit, self._key = source, limit, key
        self._flags: Tensor = torch.zeros(len(source), dtype=torch.uint8)
        self._flags.share_memory_()  # type: ignore[no-untyped-call]  # torch leaves this method unannotated

    def __contains__(self, index: int) -> bool:
        return bool(self._flags[index])

    def __len__(self) -> int:
        return int(self._flags.sum(dtype=torch.int64))

    def names(self) -> list[str]:
        return [self._source.name(int(index)) for index in self._flags.nonzero()]

    def read(self, index: int) -> tuple[Image.Image, int] | None:
        """The image and its label, or None, remembered, where it cannot be read.

        Raises:
            TooManyBadImages: this is one more than the limit.
            ReadFault: too many files are open, memory is short, or a network drive is gone.
        """
        if index in self:
            return None
        try:
            return self._source[index]
        except UNREADABLE as error:
            if isinstance(error, OSError) and error.errno in _NOT_THE_IMAGE:
                raise ReadFault(f"{self._source.name(index)}: {error.strerror}; {AGAIN}") from error
            self._flags[index] = 1
            if len(self) > self._limit:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise TooManyBadImages(
                    f"{self._key}: {len(self)} unreadable images, such as {', '.join(self.names()[:3])} ({reason}); "
                    f"allowed: {self._limit} (data.max_bad_images)"
                ) from error
            return None

    def refuse_all(self, images: int) -> NoReturn:
        """Raise the TooManyBadImages for `images` images of which none could be read."""
        raise TooManyBadImages(
            f"{self._key}: none of {images} images can be read, such as {', '.join(self.names()[:3])}; allowed: what "
            "Pillow opens, 8 or 16 bits a channel"
        )


class TrainImages(Dataset[Sample]):
    """Augmented training images, indexed by the (epoch, position) that `EpochSampler` yields.

    The randomness of an image depends on (seed, epoch, index of the image) only, not on the worker that reads it or on
    what was read before, so it is the same for any number of workers and after a resume.
    """

    def __init__(self, bad: BadImages, source: ImageSource, indices: NDArray[np.int64], p: TrainTransform, seed: int):
        self.bad, self.source, self.indices, self.transform, self.seed = bad, source, indices, p, seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, position = key
        for step in range(len(self)):
            # The next image stands in for a broken one, so that steps and sharding do not depend on which are broken.
            index = int(self.indices[(position + step) % len(self)])
            item = self.bad.read(index)
            if item is not None:
                rng = np.random.default_rng((self.seed, epoch, index))
                return self.transform(item[0], rng), item[1]
        self.bad.refuse_all(len(self))


class EvalImages(Dataset["Sample | None"]):
    """Images in their evaluation geometry; None for one that cannot be read, which the batch then leaves out."""

    def __init__(self, bad: BadImages, source: ImageSource, indices: NDArray[np.int64], p: Preprocess) -> None:
        self.bad, self.source, self.indices, self.transform = bad, source, indices, eval_transform(p)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Sample | None:
        item = self.bad.read(int(self.indices[position]))
        return None if item is None else (self.transform(item[0]), item[1])


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, position) pairs in an order that depends on (seed, epoch) only.

    The epoch travels with the position because persistent workers hold a copy of the data set from before the epoch.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch, self.skip = count, seed, 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count - self.skip

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, skip = self.epoch, self.skip
        order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
        yield from ((epoch, int(position)) for position in order[skip:])


def collate(samples: Sequence[Sample | None]) -> Batch:
    """Stack what could be read; without labels the batch's labels are None. All unreadable: an empty batch."""
    good = [sample for sample in samples if sample is not None]
    if not good:
        return Batch(torch.empty(0), None)
    labels = torch.tensor([label for _, label in good], dtype=torch.int64)
    return Batch(torch.stack([image for image, _ in good]), None if labels[0] < 0 else labels)


def make_loader(
    images: Dataset[Sample] | EvalImages, batch_size: int, workers: int, sampler: EpochSampler | None = None
) -> DataLoader[Batch]:
    """A DataLoader of `Batch`; in the order of the images without a `sampler`, never dropping the last batch."""
    return DataLoader(
        images,  # type: ignore[arg-type]  # a DataLoader is typed by its samples, and yields what collate_fn returns
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=heed_reader_only,
        pin_memory=torch.cuda.is_available(),
        # Training loaders are iterated every epoch; the others would only keep idle processes and their memory.
        persistent_workers=workers > 0 and sampler is not None,
        # Its own generator, or the draw of a worker seed would shift the random numbers of the training loop.
        generator=torch.Generator().manual_seed(0),
    )
