"""One batch of images, whatever the loader it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from act.errors import InputError

IMAGE_KEYS = ("image", "images", "pixel_values", "input", "x")
LABEL_KEYS = ("label", "labels", "target", "y")
ACCEPTED = (
    "accepted are a tensor, (images,), (images, labels), or a dict with one of the keys "
    f"{', '.join(IMAGE_KEYS)} and optionally one of {', '.join(LABEL_KEYS)}"
)


def own_text(kind: type[Exception], text: str) -> str:
    """The message of an exception that DataLoader rebuilt from the text of a worker's traceback, else `text` itself."""
    return text.strip().rpartition("\n")[2].partition(f"{kind.__name__}: ")[2] or text


class BadBatch(InputError):
    """What a loader, or one of its worker processes, met in the data."""

    def __init__(self, problem: str) -> None:
        super().__init__(own_text(type(self), problem))


@dataclass(frozen=True)
class Batch:
    """Images float32 [B, C, H, W], normalised; labels int64 [B], or None when there are none."""

    images: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on `device`; also what accelerate's prepared loaders call."""
        labels = None if self.labels is None else self.labels.to(device, non_blocking=non_blocking)
        return Batch(self.images.to(device, non_blocking=non_blocking), labels)

    def pin_memory(self) -> Batch:
        """Page-locked copies; called by a `DataLoader` with `pin_memory=True`."""
        return Batch(self.images.pin_memory(), None if self.labels is None else self.labels.pin_memory())


def describe(item: object) -> str:
    """A short name of what a loader yielded, for messages: types, shapes and keys, never values."""
    if isinstance(item, Tensor):
        return f"tensor {list(item.shape)} {str(item.dtype).removeprefix('torch.')}"
    if isinstance(item, Mapping):
        return "dict with keys " + (", ".join(map(str, item)) or "(none)")
    if isinstance(item, (tuple, list)):
        return f"{type(item).__name__} of {len(item)} ({', '.join(type(part).__name__ for part in item[:4])})"
    return type(item).__name__


def to_batch(item: object) -> Batch:
    """Read what a loader yields as a `Batch`.

    Args:
        item: a Batch, a tensor [B, C, H, W], `(images,)`, `(images, labels)`, or a mapping with an image key
            (`IMAGE_KEYS`) and optionally a label key (`LABEL_KEYS`).

    Raises:
        InputError: anything else; the message says what came and what is accepted.
    """
    if isinstance(item, Batch):
        return item
    images: object
    labels: object = None
    if isinstance(item, Tensor):
        images = item
    elif isinstance(item, Mapping):
        images, labels = _from_mapping(item)
    elif isinstance(item, (tuple, list)) and len(item) in (1, 2):
        images, labels = item[0], (item[1] if len(item) == 2 else None)
    else:
        raise InputError(f"data loader: a batch is {describe(item)}; {ACCEPTED}")
    return Batch(_images(images, item), _labels(labels, images, item))


def _from_mapping(item: Mapping[object, object]) -> tuple[object, object]:
    found = {kind: [key for key in keys if key in item] for kind, keys in (("i", IMAGE_KEYS), ("l", LABEL_KEYS))}
    if len(found["i"]) != 1 or len(found["l"]) > 1:
        raise InputError(f"data loader: a batch is {describe(item)}; {ACCEPTED}, one of each kind")
    return item[found["i"][0]], (item[found["l"][0]] if found["l"] else None)


def _images(images: object, item: object) -> Tensor:
    if not isinstance(images, Tensor) or images.ndim != 4:
        what = f"its images are {describe(images)}" if images is not item else "not four-dimensional"
        raise InputError(f"data loader: a batch is {describe(item)}, {what}; images must be a tensor [B, C, H, W]")
    if not images.is_floating_point():
        # An integer image has not been normalised, and there is no telling with what mean and deviation to do it.
        raise InputError(
            f"data loader: images are {describe(images)}; they must be floating point and normalised as the model "
            "expects (for example by timm.data.create_transform)"
        )
    found = images.float()
    if not bool(found.sum().isfinite()):
        raise InputError(f"data loader: images are {describe(images)} with NaN or infinite values; pass finite ones")
    return found


def _labels(labels: object, images: object, item: object) -> Tensor | None:
    if labels is None:
        return None
    count = len(images) if isinstance(images, Tensor) else 0
    if not isinstance(labels, Tensor) or labels.shape != (count,) or labels.is_floating_point():
        raise InputError(
            f"data loader: labels are {describe(labels)} beside {count} images; they must be an integer tensor "
            "[B] of class indices, or be left out"
        )
    if len(labels) and int(labels.min()) < 0:
        raise InputError(f"data loader: a label is {int(labels.min())}; allowed: class indices, 0 or more")
    return labels.long()
