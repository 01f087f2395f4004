"""A user's own loaders behind the same interface as the files of a recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from act.data.batch import BadBatch, Batch, to_batch
from act.data.split import Batches
from act.errors import InputError


@dataclass
class Same:
    """`to_batch` for every batch of the loader `name`, which must be like its first one: images of `size` [C, H, W],
    `labelled` or not, labels below `classes`, each once it is known. BadBatch for a batch of another kind."""

    name: str
    size: tuple[int, ...] | None = None
    labelled: bool = False
    classes: int | None = None

    def __call__(self, item: object) -> Batch:
        try:
            batch = to_batch(item)
        except InputError as error:
            raise BadBatch(str(error).replace("data loader", self.name, 1)) from error
        if self.size is None or not len(batch):
            return batch
        size = tuple(batch.images.shape[1:])
        if size != self.size:
            raise BadBatch(
                f"{self.name}: a batch has images of {list(size)}, the first one of {list(self.size)}; all must have "
                "one size"
            )
        if (batch.labels is not None) != self.labelled:
            raise BadBatch(f"{self.name}: some batches have labels and others none; give labels to all, or to none")
        if batch.labels is not None and self.classes is not None and int(batch.labels.max()) >= self.classes:
            raise BadBatch(
                f"{self.name}: class index {int(batch.labels.max())}, but the model's head has only {self.classes} "
                "outputs"
            )
        return batch


@dataclass(frozen=True)
class ToBatch:
    """A collate function followed by `Same`; a class, so that it can be pickled to workers."""

    collate: Callable[[Any], object]
    same: Same

    def __call__(self, samples: Any) -> Batch:
        return self.same(self.collate(samples))


class LoaderSplit:
    """Batches as the user's loader makes them: its batch size, order and augmentation are kept."""

    def __init__(self, loader: Iterable[object], name: str) -> None:
        if not isinstance(loader, Iterable) or isinstance(loader, (str, bytes, torch.Tensor)):
            raise InputError(f"{name}: {type(loader).__name__} is no loader; pass a DataLoader or a list of batches")
        if isinstance(loader, Iterator):
            raise InputError(
                f"{name}: {type(loader).__name__} can be read only once, and every epoch and calibration reads again; "
                "pass a DataLoader or another object that can be iterated anew"
            )
        self.loader, self.name = loader, name
        self.same = Same(name)
        self._batches: DataLoader[Batch] | Iterable[object] = (
            _with_to_batch(loader, self.same) if type(loader) is DataLoader else loader
        )
        self._first = self._peek()
        self.labelled = self.same.labelled = self._first.labels is not None
        # Of the first batch only; the rest has not been read.
        self.top_label = -1 if self._first.labels is None else int(self._first.labels.max())
        channels, height, width = self._first.images.shape[1:]
        self.input_size = self.same.size = (int(channels), int(height), int(width))
        self.class_names: list[str] | None = None

    @property
    def images(self) -> int | None:
        """None for a stream without a length."""
        dataset = getattr(self.loader, "dataset", None)
        if isinstance(dataset, Sized) and not isinstance(dataset, IterableDataset):
            return len(dataset)
        # A plain list of batches; a loader's own len() counts batches, of which the last may be smaller.
        return sum(len(self.same(item)) for item in self.loader) if isinstance(self.loader, (list, tuple)) else None

    def train_loader(self, batch_size: int) -> DataLoader[Batch] | Batches:
        return self._batches if isinstance(self._batches, DataLoader) else self._all()

    def train(self, batch_size: int, epoch: int, skip_batches: int) -> Batches:
        def start() -> Iterator[Batch]:
            for part in _parts(self._batches):
                if callable(getattr(part, "set_epoch", None)):
                    part.set_epoch(epoch)
            return islice(iter(self._all()), skip_batches, None)

        count = _length(self.loader)
        return Batches(start, None if count is None else max(0, count - skip_batches))

    def in_order(self, batch_size: int) -> Batches:
        return self._all()

    def sample(self, images: int, batch_size: int) -> Batches:
        def start() -> Iterator[Batch]:
            left = images
            for batch in self._all():
                for begin in range(0, min(left, len(batch)), batch_size):
                    part = slice(begin, min(begin + batch_size, left))
                    yield Batch(batch.images[part], None if batch.labels is None else batch.labels[part])
                left -= len(batch)
                if left <= 0:
                    return

        return Batches(start)

    def fingerprint(self) -> str:
        """sha256 over lengths and shapes and, for a loader that does not shuffle, its first batch.

        A loader's images have no names, and reading all of them would cost an epoch.
        """
        again = self._peek()
        digest = hashlib.sha256(f"{self.images}\0{_length(self.loader)}\0{list(again.images.shape)}".encode())
        if torch.equal(again.images, self._first.images):
            digest.update(again.images.contiguous().numpy(force=True).tobytes())
        return digest.hexdigest()

    def skipped(self) -> list[str]:
        return []

    def _all(self) -> Batches:
        return Batches(lambda: map(self.same, self._batches), _length(self.loader))

    def _peek(self) -> Batch:
        # A shuffling loader draws from the global generator; looking must not change what training draws later.
        with torch.random.fork_rng(devices=[]):
            for item in self._batches:
                batch = self.same(item)
                if len(batch):
                    return batch
        raise InputError(f"{self.name}: it yields no batch at all; pass a loader with at least one image")


def _with_to_batch(loader: DataLoader[Any], check: Same) -> DataLoader[Batch]:
    """The same loader with `check` behind its collate function, so that accelerate can still shard it."""
    same: dict[str, Any] = {
        name: getattr(loader, name)
        for name in (
            "num_workers",
            "pin_memory",
            "timeout",
            "worker_init_fn",
            "multiprocessing_context",
            "generator",
            "prefetch_factor",
            "persistent_workers",
        )
    }
    if loader.batch_sampler is not None and not isinstance(loader.dataset, IterableDataset):
        same["batch_sampler"] = loader.batch_sampler
    else:
        same |= {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
        if not isinstance(loader.dataset, IterableDataset):
            same["sampler"] = loader.sampler
    return DataLoader(loader.dataset, collate_fn=ToBatch(loader.collate_fn, check), **same)


def _parts(loader: object) -> list[Any]:
    """Where a data loader may keep the epoch of its shuffle."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    found = [loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    distinct = {id(part): part for part in [*found, getattr(loader, "dataset", None)] if part is not None}
    return list(distinct.values())


def _length(loader: object) -> int | None:
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a DataLoader has __len__ even where its data set has none
        return None
