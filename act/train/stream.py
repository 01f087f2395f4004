"""The endless stream of training batches: deterministic by (seed, epoch), and able to start anywhere in it."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator, skip_first_batches
from torch.utils.data import BatchSampler, DataLoader

from act.data.batch import Batch, to_batch
from act.errors import InputError
from act.train.rng import OwnRandom

if TYPE_CHECKING:
    from act.data.bundle import DataBundle


def batches_per_epoch(loader: Any) -> int | None:
    """How many batches of `loader` an epoch trains on; None when it cannot say.

    A last batch that is not full is left out, so that every step weighs its images alike and splits evenly over
    processes, unless it is the only one.
    """
    try:
        count = len(loader)
    except TypeError:
        return None
    if count == 0:
        raise InputError("data.train: there is not a single training batch; add images or lower TrainConfig.batch_size")
    sampler = getattr(loader, "batch_sampler", None)
    if type(sampler) is BatchSampler and not sampler.drop_last and isinstance(sampler.sampler, Sized):
        return len(sampler.sampler) // sampler.batch_size or count
    return count


def batch_stream(
    data: DataBundle, batch_size: int, accelerator: Accelerator, seed: int, consumed: int
) -> Iterator[Batch]:
    """This process's share of every batch from number `consumed` (0-based, over all epochs) on, on its device.

    Epoch e comes in the order of (seed, e); batches before `consumed` are skipped in the sampler, without decoding an
    image. Only a stream that is no DataLoader, or has no length, must be read over.
    """
    loader = data.train_loader(batch_size)
    per_epoch = batches_per_epoch(loader)
    epoch, skip = divmod(consumed, per_epoch) if per_epoch else (0, 0)
    unread = 0 if per_epoch else consumed
    sharded = _shard(loader, accelerator)
    while True:
        random = OwnRandom(seed, epoch)
        with random.swapped():
            iterator = _start_epoch(data, batch_size, (loader, sharded), epoch, skip)
        position = skip
        while position != per_epoch:
            with random.swapped():
                batch = next(iterator, None)
            if batch is None:
                break
            position += 1
            if unread:
                unread -= 1
            else:
                yield batch.to(accelerator.device, non_blocking=accelerator.device.type == "cuda")
        if position == 0:
            raise InputError(f"data.train: the training data gave no batch in epoch {epoch + 1}")
        epoch, skip = epoch + 1, 0


def _shard(loader: Any, accelerator: Accelerator) -> Any:
    """The loader that yields this process's part of each batch; the very loader when there is one process."""
    if accelerator.num_processes == 1:
        return loader
    if not isinstance(loader, DataLoader):
        raise InputError(
            f"data.train: a {type(loader).__name__} cannot be shared among {accelerator.num_processes} processes; "
            "give a torch DataLoader or train with one process"
        )
    try:
        return accelerator.prepare_data_loader(loader, device_placement=False)
    except ValueError as error:
        raise InputError(f"data.train: {error}") from error


def _start_epoch(data: DataBundle, batch_size: int, loaders: tuple[Any, Any], epoch: int, skip: int) -> Iterator[Batch]:
    loader, sharded = loaders
    if not isinstance(loader, DataLoader):
        return iter(data.train(batch_size, epoch, skip))
    batch_sampler = loader.batch_sampler
    holders: tuple[Any, ...] = (loader.dataset, loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    for holder in holders:
        if callable(getattr(holder, "set_epoch", None)):
            holder.set_epoch(epoch)
    if hasattr(sharded, "iteration"):
        sharded.iteration = epoch  # accelerate's loader passes this on to the sampler by itself
    return map(to_batch, skip_first_batches(sharded, skip) if skip else sharded)
