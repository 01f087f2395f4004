"""Batches of a run: order, augmentation, workers, broken images, and a user's own loaders."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from act.data.batch import Batch, to_batch
from act.data.bundle import DataBundle
from act.data.loading import TooManyBadImages
from act.data.preprocess import Preprocess, resolve_preprocess
from act.errors import InputError
from act.recipe.schema import AugmentConfig, DataConfig

PLAIN = Preprocess((3, 8, 8), 8, 1.0, "center", "nearest", (0.0,) * 3, (1 / 255,) * 3)


def folder(root: Path, per_class: int = 12, classes: int = 2) -> str:
    """Each image is filled with its own number, in a left half; the right half is empty (so that a flip shows)."""
    for index in range(per_class * classes):
        path = root / f"c{index // per_class}" / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((8, 8), np.uint8)
        pixels[:, :4] = index + 1
        Image.fromarray(pixels).save(path)
    return str(root)


def config(train: str | None, workers: int = 0, **fields: object) -> DataConfig:
    return DataConfig(train=train, workers=workers, **fields)  # type: ignore[arg-type]


def number(image: torch.Tensor) -> int:
    return int(image.max().round()) - 1


def numbers(batches: Iterable[Batch]) -> list[int]:
    return [number(image) for batch in batches for image in batch.images]


def same(left: Iterable[Batch], right: Iterable[Batch]) -> bool:
    pairs = list(zip(left, right, strict=True))
    return bool(pairs) and all(torch.equal(a.images, b.images) for a, b in pairs)


def test_an_epoch_visits_every_image_once_with_its_label(tmp_path: Path) -> None:
    bundle = DataBundle(config(folder(tmp_path)), PLAIN, seed=0)
    batches = list(bundle.train(5, epoch=0))
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 4] and len(bundle.train(5, 0)) == 5
    assert sorted(numbers(batches)) == list(range(24)) == sorted(numbers(bundle.train(5, 1)))
    labels = torch.cat([batch.labels for batch in batches if batch.labels is not None])
    assert labels.tolist() == [one // 12 for one in numbers(batches)]
    assert bundle.labelled and bundle.train_images == 24 and not bundle.has_val


def test_order_and_augmentation_depend_on_seed_and_epoch_only(tmp_path: Path) -> None:
    train = folder(tmp_path)
    augment = AugmentConfig(hflip=0.5, shift=2)
    alone = DataBundle(config(train, 0, augment=augment), PLAIN, seed=3)
    workers = DataBundle(config(train, 2, augment=augment), PLAIN, seed=3)
    assert list(workers.train(5, epoch=0))  # persistent workers now hold the data set as it was in epoch 0
    for epoch in (1, 2):
        assert same(alone.train(5, epoch), workers.train(5, epoch))
    assert same(alone.train(5, 2), alone.train(5, 2)) and not same(alone.train(5, 2), alone.train(5, 1))
    assert not same(alone.train(5, 2), DataBundle(config(train, augment=augment), PLAIN, seed=4).train(5, 2))
    # The same image is augmented differently in different epochs.
    first, second = ({number(i): i for b in alone.train(24, epoch) for i in b.images} for epoch in (0, 1))
    assert 4 < sum(not torch.equal(first[one], second[one]) for one in first) <= 24


def test_resuming_within_an_epoch(tmp_path: Path) -> None:
    for workers in (0, 2):
        bundle = DataBundle(config(folder(tmp_path), workers, augment=AugmentConfig(shift=1)), PLAIN, seed=0)
        assert same(list(bundle.train(5, 1))[2:], bundle.train(5, 1, skip_batches=2))
        assert len(bundle.train(5, 1, skip_batches=2)) == 3
        assert len(list(bundle.train(5, 1))) == 5


def test_abandoning_an_epoch_does_not_disturb_the_next(tmp_path: Path) -> None:
    bundle = DataBundle(config(folder(tmp_path), 2), PLAIN, seed=0)
    expected = [batch.images for batch in bundle.train(4, 1)]
    next(iter(bundle.train(4, 0)))
    assert all(torch.equal(a, b.images) for a, b in zip(expected, bundle.train(4, 1), strict=True))


def test_making_batches_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    bundle = DataBundle(config(folder(tmp_path), 0, val=folder(tmp_path)), PLAIN, seed=0)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for batches in (bundle.train(5, 0), bundle.val(5), bundle.calibration(4, 2)):
        list(batches)
    assert torch.equal(torch.rand(3), expected)


def test_calibration_is_seeded_unaugmented_and_never_val(tmp_path: Path) -> None:
    train, val = folder(tmp_path / "train"), folder(tmp_path / "val", per_class=50)
    bundle = DataBundle(config(train, val=val, augment=AugmentConfig(hflip=1.0, shift=3)), PLAIN, seed=0)
    calibration = bundle.calibration(10, 4)
    assert [len(batch) for batch in calibration] == [4, 4, 2]
    chosen = numbers(calibration)
    assert chosen == numbers(calibration) and len(set(chosen)) == 10
    assert numbers(bundle.calibration(20, 7))[:10] == chosen  # more images extend the choice
    assert all(batch.images[:, :, :, 4:].eq(0).all() for batch in calibration)  # hflip 1 would have flipped them
    assert chosen != numbers(DataBundle(config(train), PLAIN, seed=1).calibration(10, 4))
    assert len(numbers(bundle.calibration(1000, 8))) == 24
    own = DataBundle(config(train, calibration=folder(tmp_path / "own", per_class=3)), PLAIN, seed=0)
    assert sorted(numbers(own.calibration(100, 4))) == list(range(6))
    with pytest.raises(InputError, match="for measuring only"):
        DataBundle(config(train, val=val, calibration=val), PLAIN, seed=0)


def test_val_is_in_order_and_shares_the_classes_of_train(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", per_class=4, classes=3)
    val = Path(folder(tmp_path / "val", per_class=4, classes=3))
    for path in (val / "c0").iterdir():
        path.unlink()
    bundle = DataBundle(config(train, val=str(val)), PLAIN, seed=0)
    assert numbers(bundle.val(3)) == [4, 5, 6, 7, 8, 9, 10, 11]
    assert [batch.labels.tolist() for batch in bundle.val(4) if batch.labels is not None] == [[1] * 4, [2] * 4]
    with pytest.raises(InputError, match=r"data.val: .* data.train does not name: c2"):
        DataBundle(config(folder(tmp_path / "two", per_class=4), val=str(val)), PLAIN, seed=0)


def test_limits_are_seeded_choices(tmp_path: Path) -> None:
    train = folder(tmp_path)
    bundle = DataBundle(config(train, val=train, limit_train=7, limit_val=3), PLAIN, seed=0)
    assert (bundle.train_images, bundle.val_images) == (7, 3)
    chosen = set(numbers(bundle.train(4, 0)))
    assert len(chosen) == 7 and chosen == set(numbers(bundle.train(4, 5))) and chosen != set(range(7))
    assert set(numbers(bundle.calibration(100, 4))) == chosen
    assert bundle.notes and bundle.fingerprint() != DataBundle(config(train, val=train), PLAIN, 0).fingerprint()
    # Models of different seeds are compared on the same images.
    other = DataBundle(config(train, val=train, limit_train=7, limit_val=3), PLAIN, seed=1)
    assert numbers(other.val(3)) == numbers(bundle.val(3)) and set(numbers(other.train(4, 0))) != chosen


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_named_and_skipped_up_to_the_limit(tmp_path: Path, workers: int) -> None:
    train = folder(tmp_path)
    for broken in (2, 20):
        (tmp_path / f"c{broken // 12}" / f"{broken:03d}.png").write_bytes(b"\x89PNG broken")
    bundle = DataBundle(config(train, workers, val=train, max_bad_images=2), PLAIN, seed=0)
    assert bundle.skipped == []
    for epoch in range(2):
        assert [len(batch) for batch in bundle.train(5, epoch)] == [5, 5, 5, 5, 4]  # another image stands in
    assert sorted(Path(name).name for name in bundle.skipped) == ["002.png", "020.png"]
    assert numbers(bundle.val(5)) == [one for one in range(24) if one not in (2, 20)]
    assert len(bundle.skipped) == 4  # the same files of two roles
    for batch in bundle.calibration(24, 1):
        assert len(batch) == 1


def test_too_many_unreadable_images_stop_with_one_line(tmp_path: Path) -> None:
    train = folder(tmp_path)
    for broken in (2, 20):
        (tmp_path / f"c{broken // 12}" / f"{broken:03d}.png").write_bytes(b"")
    bundle = DataBundle(config(train, max_bad_images=1), PLAIN, seed=0)
    with pytest.raises(
        InputError, match=r"^data.train: 2 unreadable images, such as .*002.png.*max_bad_images"
    ) as caught:
        list(bundle.train(5, 0))
    # A worker's exception is built anew from its traceback; the line must come out of that unchanged.
    with pytest.raises(TooManyBadImages) as again:
        ExceptionWrapper((caught.type, caught.value, caught.tb)).reraise()
    assert again.value.problems == caught.value.problems and "\n" not in str(caught.value)


def test_all_problems_of_the_section_at_once(tmp_path: Path) -> None:
    cfg = config("nowhere", val="nowhere-else", class_map=str(tmp_path / "none.txt"), batch_size=0)
    cfg.augment.hflip = 2.0
    with pytest.raises(InputError) as caught:
        DataBundle(cfg, PLAIN, seed=0)
    assert len(caught.value.problems) == 5


def test_missing_roles_say_what_to_set() -> None:
    bundle = DataBundle(config(None), PLAIN, seed=0)
    assert not bundle.has_train and not bundle.has_val and bundle.train_images == 0
    with pytest.raises(InputError, match=r"set data\.train"):
        bundle.train(4, 0)
    with pytest.raises(InputError, match=r"set data.calibration \(or data.train\)"):
        bundle.calibration(4, 4)


def test_classes_must_be_those_of_the_head(tmp_path: Path) -> None:
    bundle = DataBundle(config(folder(tmp_path)), PLAIN, seed=0)
    bundle.check_head(2)
    with pytest.raises(InputError, match="2 classes, but the model's head has 1000 outputs"):
        bundle.check_head(1000)
    loader = DataBundle.from_loaders([(IMAGES, LABELS)])
    loader.check_head(10)
    with pytest.raises(InputError, match="class index 9, but the model's head has only 9 outputs"):
        loader.check_head(9)


def test_the_training_loader_can_be_sharded_and_sent_to_other_processes(tmp_path: Path) -> None:
    from accelerate.data_loader import prepare_data_loader

    bundle = DataBundle(config(folder(tmp_path), augment=AugmentConfig(shift=2)), PLAIN, seed=0)
    whole = {number(i): i for b in bundle.train(4, 3) for i in b.images}
    shards = [
        prepare_data_loader(bundle.train_loader(4), num_processes=2, process_index=rank, put_on_device=False)
        for rank in range(2)
    ]
    seen: Counter[int] = Counter()
    for shard in shards:
        shard.set_epoch(3)
        for batch in shard:
            for image in batch.images:
                seen[number(image)] += 1
                assert torch.equal(image, whole[number(image)])
    assert set(seen) == set(whole) and sum(seen.values()) == 24
    dataset = pickle.loads(pickle.dumps(bundle.train_loader(4).dataset))  # as a spawned worker receives it
    assert torch.equal(dataset[3, 0][0], bundle.train_loader(4).dataset[3, 0][0])


def test_quickstart_images_are_preprocessed_as_its_model_was_trained() -> None:
    cfg = DataConfig(
        train="builtin:digits.tar/train", workers=0, resize=32, interpolation="bilinear", mean=[0.5], std=[0.5]
    )
    cfg.input_size = [3, 32, 32]
    batch = next(iter(DataBundle(cfg, resolve_preprocess(None, cfg), seed=0).calibration(4, 4)))
    assert batch.images.shape == (4, 3, 32, 32) and batch.images.min() == -1 and 0.8 < batch.images.max() <= 1


IMAGES, LABELS = torch.rand(10, 3, 8, 8), torch.arange(10)


@pytest.mark.parametrize(
    "item",
    [
        Batch(IMAGES, LABELS),
        (IMAGES, LABELS),
        [IMAGES, LABELS.int()],
        {"pixel_values": IMAGES, "labels": LABELS, "id": "ignored"},
        {"x": IMAGES.double(), "y": LABELS},
    ],
)
def test_to_batch_with_labels(item: object) -> None:
    batch = to_batch(item)
    assert torch.equal(batch.images, IMAGES) and batch.images.dtype == torch.float32
    assert batch.labels is not None and torch.equal(batch.labels, LABELS) and batch.labels.dtype == torch.int64


@pytest.mark.parametrize("item", [IMAGES, (IMAGES,), {"image": IMAGES}, Batch(IMAGES, None)])
def test_to_batch_without_labels(item: object) -> None:
    batch = to_batch(item)
    assert torch.equal(batch.images, IMAGES) and batch.labels is None


@pytest.mark.parametrize(
    ("item", "came"),
    [
        ("text", "a batch is str"),
        ((IMAGES, LABELS, LABELS), "tuple of 3"),
        ({"img": IMAGES}, "dict with keys img"),
        ({"image": IMAGES, "x": IMAGES}, "one of each kind"),
        (IMAGES[0], r"tensor \[3, 8, 8\] float32"),
        ((IMAGES * 255).byte(), "uint8; they must be floating point"),
        ((IMAGES, LABELS[:4]), r"labels are tensor \[4\] int64 beside 10 images"),
        ((IMAGES, torch.rand(10, 5)), "integer tensor"),
    ],
)
def test_to_batch_says_what_came(item: object, came: str) -> None:
    with pytest.raises(InputError, match=came):
        to_batch(item)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_dataloader(workers: int) -> None:
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4, num_workers=workers)
    bundle = DataBundle.from_loaders(loader, loader)
    assert bundle.labelled and bundle.val_labelled and bundle.train_images == bundle.val_images == 10
    assert isinstance(bundle.train_loader(99), DataLoader)
    for batches in (bundle.train(99, 0), bundle.train_loader(99), bundle.val(99)):
        assert torch.equal(torch.cat([batch.images for batch in batches]), IMAGES)
    assert torch.equal(next(iter(bundle.train(99, 0, skip_batches=2))).images, IMAGES[8:])
    calibration = bundle.calibration(7, 3)
    assert [len(batch) for batch in calibration] == [3, 1, 3]
    assert torch.equal(torch.cat([batch.images for batch in calibration]), IMAGES[:7])
    assert bundle.fingerprint() == DataBundle.from_loaders(loader, loader).fingerprint()
    other = DataLoader(TensorDataset(IMAGES.flip(0), LABELS), batch_size=4)
    assert bundle.fingerprint() != DataBundle.from_loaders(loader, other).fingerprint()


def test_a_shuffling_loader_is_not_disturbed_by_looking() -> None:
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4, shuffle=True)
    torch.manual_seed(0)
    expected = [images for images, _ in loader]
    torch.manual_seed(0)
    bundle = DataBundle.from_loaders(loader)
    bundle.fingerprint()
    assert all(torch.equal(a, b.images) for a, b in zip(expected, bundle.train(4, 0), strict=True))


class Stream(IterableDataset[torch.Tensor]):
    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(IMAGES)


def test_a_stream_without_length_and_a_list_of_batches() -> None:
    stream = DataBundle.from_loaders(DataLoader(Stream(), batch_size=4))
    assert stream.train_images is None and not stream.labelled
    assert [len(batch) for batch in stream.train(4, 0)] == [4, 4, 2]
    with pytest.raises(TypeError, match="not known"):
        len(stream.train(4, 0))
    listed = DataBundle.from_loaders([IMAGES[:6], IMAGES[6:]])
    assert listed.train_images == 10 and len(listed.train(4, 0)) == 2
    with pytest.raises(InputError, match="can be read only once"):
        DataBundle.from_loaders(iter([IMAGES]))
    with pytest.raises(InputError, match="no batch at all"):
        DataBundle.from_loaders([])
    with pytest.raises(InputError, match="int is no loader"):
        DataBundle.from_loaders(3)  # type: ignore[arg-type]
