"""Where encoded images lie: a class folder, a tar, WebDataset shards or a Hugging Face data set.

Every reader lists its images once (names and labels, no pixels) and then opens any of them by index, so that one
shuffle, one sharding over processes and one resume serve them all. Readers hold no open file: they may be forked
into or pickled to worker processes.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Sequence
from glob import glob
from pathlib import Path
from typing import IO, Protocol

from timm.data import create_reader
from timm.utils import natural_key

from act.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")

# timm orders names by the numbers in them, and takes characters such as a raised 2 for digits.
_NO_ORDER = "timm cannot order the names of its folders and images; rename those with digits other than 0 to 9"


class Reader(Protocol):
    """`labels` are indices into `class_names`, or final class indices where that is None; None: unlabelled."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def labels(self) -> Sequence[int] | None: ...

    @property
    def class_names(self) -> Sequence[str] | None: ...

    def open(self, index: int) -> IO[bytes]: ...

    def sizes(self) -> list[int]:
        """Encoded bytes of each image, in the order of `names`."""
        ...


def natural_order(names: Iterable[str], where: str) -> list[str]:
    """`names` in timm's order (10 after 9); InputError where it has none."""
    try:
        return sorted(names, key=natural_key)
    except ValueError as error:
        raise InputError(f"{where}: {_NO_ORDER} ({error})") from error


def label_by_folder(paths: Sequence[str], where: str) -> tuple[list[int] | None, list[str] | None]:
    """Labels from the class folder of each relative path, and the class names in timm's order (10 after 9).

    Raises:
        InputError: some images lie in class folders and others beside them, or timm has no order for the names.
    """
    folders = _class_folders(paths)
    names = natural_order(set(folders), where)
    if names == [""]:
        return None, None
    if "" in names:
        raise InputError(
            f"{where}: {folders.count('')} images lie beside the class folders ({', '.join(names[1:4])}, ...); put "
            "every image into a class folder, or none for unlabelled images"
        )
    index = {name: position for position, name in enumerate(names)}
    return [index[folder] for folder in folders], names


class FolderReader:
    """`root/<class>/.../image`, through timm's reader; images directly in `root` alone are unlabelled."""

    def __init__(self, root: Path, where: str) -> None:
        try:
            reader = create_reader("", root=str(root), input_key=";".join(EXTENSIONS))
        except RuntimeError as error:
            raise InputError(f"{where}: no image in {root}; looked for {', '.join(EXTENSIONS)}") from error
        except ValueError as error:
            raise InputError(f"{where}: {_NO_ORDER} ({error})") from error
        self._paths = [path for path, _ in reader.samples]
        self.names = [Path(os.path.relpath(path, root)).as_posix() for path in self._paths]
        self.labels, self.class_names = label_by_folder(self.names, where)

    def open(self, index: int) -> IO[bytes]:
        path = self._paths[index]
        if not os.path.isfile(path):  # opening a pipe would wait for ever
            raise FileNotFoundError("a broken link, or no regular file")
        return open(path, "rb")

    def sizes(self) -> list[int]:
        return [os.path.getsize(path) if os.path.isfile(path) else 0 for path in self._paths]


class _InTar:
    """Random access to the members of uncompressed tars by (tar, offset, size), in place of timm's tar readers.

    Those keep a file handle that forked workers would share, cache listings as pickles, take no folder inside a
    tar, and shuffle WebDataset shards only within a buffer, which depends on the number of workers.
    """

    def __init__(self) -> None:
        self._members: list[tuple[str, int, int]] = []

    def open(self, index: int) -> IO[bytes]:
        path, offset, size = self._members[index]
        with open(path, "rb") as archive:
            archive.seek(offset)
            return io.BytesIO(archive.read(size))

    def sizes(self) -> list[int]:
        return [size for _, _, size in self._members]


class TarReader(_InTar):
    """An uncompressed tar of class folders, or the class folders under `inside` in it."""

    def __init__(self, path: Path, inside: str, where: str) -> None:
        super().__init__()
        prefix = f"{inside}/" if inside else ""
        members = [member for member in scan_tar(path, where) if Path(member.name).suffix.lower() in EXTENSIONS]
        chosen = [(_clean(member.name), member) for member in members if _clean(member.name).startswith(prefix)]
        if not chosen:
            top = sorted({_clean(member.name).partition("/")[0] for member in members})
            inner = f" under {inside!r}" if inside else ""
            raise InputError(f"{where}: no image{inner} in {path}; at its top are: {', '.join(top[:10]) or 'none'}")
        place = {name: index for index, name in enumerate(natural_order((name for name, _ in chosen), where))}
        chosen.sort(key=lambda pair: place[pair[0]])
        self._members = [(str(path), member.offset_data, member.size) for _, member in chosen]
        self.names = [name.removeprefix(prefix) for name, _ in chosen]
        self.labels, self.class_names = label_by_folder(self.names, where)


class ShardReader(_InTar):
    """WebDataset shards: `key.jpg` (or another image extension) with its class index in `key.cls`, or without."""

    def __init__(self, pattern: str, where: str) -> None:
        super().__init__()
        folder = os.path.isdir(pattern)
        shards = natural_order(glob(os.path.join(pattern, "*.tar")) if folder else glob(pattern), where)
        if not shards:
            raise InputError(f"{where}: no shard matches {pattern!r}; give a folder of .tar files, one, or a pattern")
        self.names: list[str] = []
        self.class_names = None
        found: list[int | None] = []
        for shard in shards:
            for name, label, member in _shard_samples(Path(shard), where):
                self.names.append(f"{os.path.basename(shard)}/{name}")
                self._members.append((shard, member.offset_data, member.size))
                found.append(label)
        if not found:
            raise InputError(f"{where}: no image in {len(shards)} shards; looked for {', '.join(EXTENSIONS)}")
        labels = [label for label in found if label is not None]
        if labels and len(labels) != len(found):
            raise InputError(f"{where}: {len(found) - len(labels)} of {len(found)} images have no .cls beside them")
        self.labels = labels or None


class HubReader:
    """A Hugging Face data set, `NAME` or `NAME@SPLIT`, through timm's reader; loading scripts are never run."""

    def __init__(self, name: str, split: str, where: str) -> None:
        try:
            import datasets
        except ImportError as error:
            raise InputError(
                f"{where}: hfds/ needs the package `datasets`; run: pip install datasets (or vitcompress[datasets])"
            ) from error
        name, _, given = name.partition("@")
        try:
            builder = datasets.load_dataset_builder(name)
            features = builder.info.features or {}
            keys = {
                "input_key": _column(features, datasets.Image, ("image", "img")),
                "target_key": _column(features, datasets.ClassLabel, ("label", "labels", "fine_label")),
            }
            self._reader = create_reader(
                f"hfds/{name}", split=given or split, **{key: value for key, value in keys.items() if value}
            )
            data = self._reader.dataset
        except (ValueError, KeyError, OSError) as error:  # datasets' own errors derive from these
            reason = str(error).strip().split("\n")[0]
            raise InputError(f"{where}: data set {name!r}, split {given or split!r}: {reason}") from error
        self.names = [f"{name}/{index}" for index in range(len(data))]
        self.labels: list[int] | None = None
        self.class_names: list[str] | None = None
        self._identity = str(data._fingerprint)
        if self._reader.label_key in data.column_names:
            self.labels = [int(label) for label in data[self._reader.label_key]]
            self.class_names = list(self._reader.class_to_idx) or None

    def open(self, index: int) -> IO[bytes]:
        image = self._reader.dataset[index][self._reader.image_key]
        return io.BytesIO(image["bytes"]) if image.get("bytes") else open(image["path"], "rb")

    def sizes(self) -> list[int]:
        # Reading every image only to learn its size would be a download; the library's own hash stands for them.
        return [int(self._identity[:8], 16)] * len(self.names)


def scan_tar(path: Path, where: str) -> list[tarfile.TarInfo]:
    """The regular files of an uncompressed tar, by reading its headers only.

    Raises:
        InputError: not a tar, cut short, or compressed (which could only be read from front to back).
    """
    try:
        with tarfile.open(path, "r:") as archive:
            members = [member for member in archive if member.isreg()]
            end = archive.offset
    except (tarfile.TarError, EOFError) as error:
        raise InputError(
            f"{where}: {path} is no uncompressed tar ({error}); a compressed one has to be unpacked first"
        ) from error
    # At a header that is damaged or cut short tarfile stops without a word; a whole archive ends with blocks of zeros.
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise InputError(
                f"{where}: {path} is damaged or cut short after {len(members)} files; a whole tar ends with a block of "
                "zeros; copy or make it again"
            )
    return members


def _shard_samples(shard: Path, where: str) -> list[tuple[str, int | None, tarfile.TarInfo]]:
    images: dict[str, tuple[str, tarfile.TarInfo]] = {}
    labels: dict[str, int] = {}
    with open(shard, "rb") as archive:
        for member in scan_tar(shard, where):
            folder, _, base = member.name.rpartition("/")
            stem, _, kind = base.partition(".")  # WebDataset's rule: the key ends at the first dot of the file name
            key = f"{folder}/{stem}"
            if f".{kind.lower()}" in EXTENSIONS:
                images[key] = (member.name, member)
            elif kind.lower() == "cls":
                archive.seek(member.offset_data)
                text = archive.read(member.size).decode(errors="replace").strip()
                if not text.isdecimal():
                    raise InputError(f"{where}: {shard}: {member.name} holds {text[:20]!r}; allowed: a class index")
                labels[key] = int(text)
    return [(name, labels.get(key), member) for key, (name, member) in images.items()]


def _column(features: dict[str, object], kind: type, preferred: Sequence[str]) -> str | None:
    columns = [name for name, feature in features.items() if isinstance(feature, kind)]
    return next((name for name in preferred if name in columns), columns[0] if columns else None)


def _class_folders(names: Sequence[str]) -> list[str]:
    """The folder that names the class of each image: the innermost one ("" at the root).

    Where all innermost folders have one name and lie in others, as in `n01443537/images/1.jpg`, it is the outer one.
    """
    folders = [name.rpartition("/")[0] for name in names]
    while len({folder.rpartition("/")[2] for folder in folders}) == 1 and all("/" in folder for folder in folders):
        folders = [folder.rpartition("/")[0] for folder in folders]
    return [folder.rpartition("/")[2] for folder in folders]


def _clean(name: str) -> str:
    return name.removeprefix("./")
