"""Everything a run reads: training, validation and calibration images behind one object."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from act.data.batch import Batch
from act.data.loaders import LoaderSplit
from act.data.loading import BadImages
from act.data.preprocess import Preprocess, train_transform
from act.data.source import ImageSource, load_class_map
from act.data.split import Batches, FileSplit, Split
from act.errors import InputError

if TYPE_CHECKING:
    from act.recipe.schema import DataConfig

MINIMUM = {
    "batch_size": 1,
    "workers": 0,
    "calibration_images": 1,
    "max_bad_images": 0,
    "limit_train": 1,
    "limit_val": 1,
}
VALIDATION_SEED = 0


class DataBundle:
    """The `data` section of a recipe as batches.

    Args:
        cfg: the section.
        preprocess: from `act.data.preprocess.resolve_preprocess`.
        seed: fixes the choice of `limit_train`, the order and augmentation of every epoch, and the calibration images;
            that of `limit_val` is the same for all seeds. The numbers do not depend on the workers.

    Raises:
        InputError: every problem found in the section, all at once.
    """

    def __init__(self, cfg: DataConfig, preprocess: Preprocess, seed: int) -> None:
        problems = [
            f"data.{name}: {getattr(cfg, name)}; allowed: {least} or more"
            for name, least in MINIMUM.items()
            if getattr(cfg, name) is not None and getattr(cfg, name) < least
        ]
        if cfg.val is not None and cfg.calibration == cfg.val:
            problems.append("data.calibration: the same as data.val, which is for measuring only; use other images")
        augment, classes = None, None
        try:
            augment = train_transform(preprocess, cfg.augment)
        except InputError as error:
            problems += error.problems
        try:
            classes = load_class_map(cfg.class_map) if cfg.class_map is not None else None
        except InputError as error:
            problems += error.problems
        splits: dict[str, Split | None] = {"train": None, "val": None, "calibration": None}
        origin = "data.class_map"
        for role, limit in (("train", cfg.limit_train), ("val", cfg.limit_val), ("calibration", None)):
            location, key = getattr(cfg, role), f"data.{role}"
            if location is None:
                continue
            try:
                source = ImageSource(
                    location,
                    None if role == "calibration" else classes,
                    origin,
                    key,
                    "validation" if role == "val" else "train",
                    preprocess.input_size[0],
                )
            except InputError as error:
                problems += error.problems
                continue
            if role == "train" and classes is None and source.labelled and source.class_names:
                # The same class gets the same index in val, even where val lacks some of the classes.
                classes, origin = source.class_names, "data.train"
            if augment is not None:
                bad = BadImages(source, cfg.max_bad_images, key)
                # What models are compared on must not change with the seed that they were trained with.
                own = VALIDATION_SEED if role == "val" else seed
                splits[role] = FileSplit(source, bad, preprocess, augment, cfg.workers, own, limit)
        if problems:
            raise InputError(problems)
        self._assemble(splits["train"], splits["val"], splits["calibration"])
        if cfg.train is not None and cfg.train == cfg.val and not cfg.train.startswith("hfds/"):
            self.notes.append("data.val is the same as data.train: scores are not on unseen images")

    @classmethod
    def from_loaders(cls, train: Iterable[object] | None, val: Iterable[object] | None = None) -> DataBundle:
        """A user's own loaders: each yields what `act.data.batch.to_batch` accepts, already normalised.

        Their batch size and order are kept. Calibration takes the first images that `train` yields.

        Raises:
            InputError: not iterable, iterable only once, empty, or a first batch that cannot be read.
        """
        bundle = cls.__new__(cls)
        bundle._assemble(
            None if train is None else LoaderSplit(train, "train_dataloader"),
            None if val is None else LoaderSplit(val, "eval_dataloader"),
            None,
        )
        return bundle

    def _assemble(self, train: Split | None, val: Split | None, calibration: Split | None) -> None:
        self._train, self._val, self._calibration = train, val, calibration or train
        self._fingerprint: str | None = None
        self.notes: list[str] = []

    @property
    def has_train(self) -> bool:
        return self._train is not None

    @property
    def has_calibration(self) -> bool:
        """Whether `calibration` has images: those of data.calibration, else of data.train."""
        return self._calibration is not None

    @property
    def has_val(self) -> bool:
        return self._val is not None

    @property
    def labelled(self) -> bool:
        """Whether the training images have labels."""
        return self._train is not None and self._train.labelled

    @property
    def val_labelled(self) -> bool:
        return self._val is not None and self._val.labelled

    @property
    def train_images(self) -> int | None:
        """0 without training images, None for a stream of unknown length; unreadable ones are counted."""
        return 0 if self._train is None else self._train.images

    @property
    def val_images(self) -> int | None:
        """As `train_images`."""
        return 0 if self._val is None else self._val.images

    @property
    def input_size(self) -> tuple[int, int, int] | None:
        """[channels, height, width] of the batches; None without any images."""
        split = self._train or self._val
        return None if split is None else split.input_size

    @property
    def skipped(self) -> list[str]:
        """Unreadable images met so far, in any process of this machine's loaders."""
        splits = dict.fromkeys(split for split in (self._train, self._val, self._calibration) if split is not None)
        return [name for split in splits for name in split.skipped()]

    def train(self, batch_size: int, epoch: int, skip_batches: int = 0) -> Batches:
        """Augmented batches in the order of (seed, epoch), from batch `skip_batches` on; the last may be smaller."""
        return _need(self._train, "train").train(batch_size, epoch, skip_batches)

    def train_loader(self, batch_size: int) -> DataLoader[Batch] | Batches:
        """The training images as a DataLoader that accelerate can shard; its sampler has `set_epoch`.

        Only a user's own loader that is no plain torch DataLoader comes back as `Batches`, which cannot be sharded.
        """
        return _need(self._train, "train").train_loader(batch_size)

    def calibration(self, images: int, batch_size: int) -> Batches:
        """Up to `images` images of a seeded choice from data.calibration, else data.train; not augmented, never val."""
        return _need(self._calibration, "calibration").sample(images, batch_size)

    def val(self, batch_size: int) -> Batches:
        """All validation batches, always in the same order, unreadable images left out."""
        return _need(self._val, "val").in_order(batch_size)

    def check_head(self, num_classes: int) -> None:
        """Refuse labels that cannot mean the outputs of the model's head.

        Raises:
            InputError: the number of named classes is not `num_classes`, or an index without a name is beyond it.
        """
        problems = []
        for role, split in (("train", self._train), ("val", self._val)):
            if split is None or not split.labelled:
                continue
            names = split.class_names
            if names is None and split.top_label >= num_classes:
                problems.append(
                    f"data.{role}: class index {split.top_label}, but the model's head has only {num_classes} outputs"
                )
            if names is not None and len(names) != num_classes:
                problems.append(
                    f"data.{role}: {len(names)} classes, but the model's head has {num_classes} outputs; give "
                    "data.class_map, a text file with the class name of each output in order (or put the images "
                    "directly into the folder to use them without labels)"
                )
            if isinstance(split, LoaderSplit):
                split.same.classes = num_classes  # its further batches are checked as they come
        if problems:
            raise InputError(problems)

    def fingerprints(self) -> dict[str, str]:
        """The parts of `fingerprint`, by `data.train`, `data.val` and `data.calibration`, as far as they are given."""
        roles = {"data.train": self._train, "data.val": self._val}
        if self._calibration is not self._train:
            roles["data.calibration"] = self._calibration
        return {role: split.fingerprint() for role, split in roles.items() if split is not None}

    def described(self) -> dict[str, dict[str, Any]]:
        """For each role that was given: `fingerprint`, sha256 (hex), see `ImageSource.fingerprint`, and `images`."""
        roles = {"train": self._train, "val": self._val}
        if self._calibration is not self._train:
            roles["calibration"] = self._calibration
        return {
            role: {"fingerprint": hashlib.sha256(split.fingerprint().encode()).hexdigest(), "images": split.images}
            for role, split in roles.items()
            if split is not None
        }

    def fingerprint(self) -> str:
        """sha256 (hex) over the images of all roles, see `ImageSource.fingerprint`; the same on every machine."""
        if self._fingerprint is None:
            found = self.fingerprints()
            found.setdefault("data.calibration", found.get("data.train", ""))
            parts = [f"{role}:{found.get(f'data.{role}', '')}" for role in ("train", "val", "calibration")]
            self._fingerprint = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return self._fingerprint


def _need(split: Split | None, role: str) -> Split:
    if split is None:
        other = " (or data.train)" if role == "calibration" else ""
        raise InputError(f"data.{role}: not given, but this run needs it; set data.{role}{other} to a folder or tar")
    return split
