"""One set of images: where it lies, what its labels mean, and each image by index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from act.data.decode import decode
from act.data.readers import FolderReader, HubReader, Reader, ShardReader, TarReader
from act.errors import InputError

ASSETS = Path(__file__).resolve().parent.parent / "assets"
# Of how many images the whole content is hashed, and of up to how many bytes together; else the first bytes of some.
HASHED_IMAGES, HASHED_BYTES = 4096, 64 * 2**20
SAMPLE, PART = 256, 256 * 2**10
KINDS = "a folder, FILE.tar, FILE.tar/FOLDER, builtin:NAME, hfds/NAME[@SPLIT] or wds/SHARDS"


class ImageSource(Dataset[tuple[Image.Image, int]]):
    """A map-style data set of (PIL image in mode RGB or L, class index, or -1 where there are no labels).

    Args:
        location: a folder, tar, folder in a tar, `builtin:`, `hfds/` or `wds/` name; see `KINDS`.
        classes: class names in the order of the model's head; None: the order of the source's own names.
        classes_from: what gave `classes`, for messages.
        key: recipe key of the location, for messages.
        split: split of a Hugging Face data set when the location names none.
        channels: 3 decodes to RGB, 1 to grey.

    Raises:
        InputError: nothing there, no images, an optional package missing, or a class that `classes` does not have.
    """

    def __init__(
        self,
        location: str,
        classes: Sequence[str] | None = None,
        classes_from: str = "data.class_map",
        key: str = "data.train",
        split: str = "train",
        channels: int = 3,
    ) -> None:
        if channels not in (1, 3):
            raise InputError(f"data.input_size: {channels} channels cannot be read from image files; allowed: 1 or 3")
        self.location = location
        self.channels = channels
        self.reader = open_reader(location, key, split)
        self.class_names: list[str] | None = list(classes) if classes is not None else None
        self._fingerprint: str | None = None
        self._labels = self._map_labels(classes, classes_from, key)
        if self.class_names is None and self.reader.class_names is not None:
            self.class_names = list(self.reader.class_names)

    def __len__(self) -> int:
        return len(self.reader.names)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Raises one of `act.data.decode.UNREADABLE` for a broken image."""
        with self.reader.open(index) as stream:
            image = decode(stream, self.channels)
        return image, self.label(index)

    @property
    def labelled(self) -> bool:
        return self._labels is not None

    @property
    def top_label(self) -> int:
        """The highest class index that occurs, -1 when unlabelled."""
        return max(self._labels or [-1])

    def label(self, index: int) -> int:
        """Class index of one image without opening it, -1 when unlabelled."""
        return -1 if self._labels is None else self._labels[index]

    def name(self, index: int) -> str:
        """Where the image lies, relative to the source."""
        return f"{self.location}: {self.reader.names[index]}"

    def fingerprint(self) -> str:
        """sha256 (hex) over the sorted names, sizes and class indices, and over contents: all of up to HASHED_IMAGES
        images of HASHED_BYTES together, else the first PART bytes of SAMPLE images spread evenly over the names.

        It is the same wherever the data are copied to, and made once.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256()
            sizes = self.reader.sizes()
            order = sorted(range(len(self)), key=lambda index: (self.reader.names[index], sizes[index]))
            for index in order:
                digest.update(f"{self.reader.names[index]}\0{sizes[index]}\0{self.label(index)}\n".encode())
            if not isinstance(self.reader, HubReader):  # whose sizes stand for its contents
                for content in self._contents(order, sum(sizes)):
                    digest.update(hashlib.sha256(content).digest())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _contents(self, order: Sequence[int], total: int) -> Iterator[bytes]:
        """What `fingerprint` hashes of the images `order`, `total` bytes together."""
        whole = len(order) <= HASHED_IMAGES and total <= HASHED_BYTES
        count = len(order) if whole else min(SAMPLE, len(order))
        for number in range(count):
            try:
                with self.reader.open(order[number * len(order) // count]) as stream:
                    yield stream.read(-1 if whole else PART)
            except OSError:  # scoring and training say so, if they meet it
                yield b""

    def _map_labels(self, classes: Sequence[str] | None, classes_from: str, key: str) -> list[int] | None:
        labels, own = self.reader.labels, self.reader.class_names
        if labels is None or classes is None:
            return None if labels is None else list(labels)
        if own is None:
            highest = max(labels)
            if highest >= len(classes):
                raise InputError(f"{key}: class index {highest}, but {classes_from} has only {len(classes)} classes")
            return list(labels)
        index = {name: position for position, name in enumerate(classes)}
        unknown = [name for name in own if name not in index]
        if unknown:
            raise InputError(
                f"{key}: {self.location} has {len(unknown)} class(es) that {classes_from} does not name: "
                f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}; add them there in the order of the "
                "model's head, or take their images out"
            )
        return [index[own[label]] for label in labels]


def open_reader(location: str, key: str, split: str = "train") -> Reader:
    """The reader for a location of the recipe.

    Raises:
        InputError: see `ImageSource`.
    """
    if location.startswith("hfds/"):
        return HubReader(location.removeprefix("hfds/"), split, key)
    if location.startswith("wds/"):
        return ShardReader(location.removeprefix("wds/"), key)
    path, base = Path(location).expanduser(), Path()
    if location.startswith("builtin:"):
        base, path = ASSETS, Path(location.removeprefix("builtin:"))
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"{key}: {location!r} leaves the package; allowed: a name such as builtin:digits.tar")
    full = base / path
    if full.is_dir():
        return FolderReader(full, key)
    for candidate in (full, *full.parents):
        if candidate.suffix.lower() == ".tar" and candidate.is_file():
            inside = full.relative_to(candidate).as_posix()
            return TarReader(candidate, "" if inside == "." else inside, key)
    if full.is_file():
        raise InputError(f"{key}: {location!r} is a file but no .tar; allowed: {KINDS}")
    raise InputError(f"{key}: {location!r} does not exist (looked in {base.resolve()}); allowed: {KINDS}")


def load_class_map(path: str) -> list[str]:
    """Class names from a text file, one per line; the line number from 0 is the index of the head.

    Raises:
        InputError: no such file, not text, an empty line, or a name that occurs twice.
    """
    try:
        names = [line.strip() for line in Path(path).expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.class_map: cannot read {path!r} as text ({error}); one class name per line") from error
    while names and not names[-1]:
        names.pop()
    problems = [f"data.class_map: {path}: line {number} is empty" for number, name in enumerate(names, 1) if not name]
    first: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if name and first.setdefault(name, number) != number:
            problems.append(f"data.class_map: {path}: line {number} repeats {name!r} of line {first[name]}")
    if problems or not names:
        raise InputError(problems or f"data.class_map: {path} is empty; one class name per line")
    return names
