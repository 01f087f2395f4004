"""Images that are missing, broken or unusual: refused, or skipped by name and counted."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bad_input_support import bomb, make_place, missing, photo, refused
from PIL import Image

from act.cli.main import main
from act.data.bundle import DataBundle
from act.data.loading import ReadFault, TooManyBadImages
from act.data.preprocess import resolve_preprocess
from act.data.readers import FolderReader
from act.errors import InputError
from act.recipe.schema import DataConfig


def deep(mode: str) -> bytes:
    stream = io.BytesIO()
    pixels = np.full((20, 20), 30000, np.uint16) if mode == "16" else np.ones((20, 20), np.float32)
    Image.fromarray(pixels).save(stream, "PNG" if mode == "16" else "TIFF")
    return stream.getvalue()


def animated() -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("RGB", (20, 20), (shade, 0, 0)) for shade in (0, 100, 200)]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


# The words after `vitcompress run ok.yaml`, and parts of the line that comes back
REFUSED: list[tuple[str, list[str]]] = [
    ("data.train=folder", ["data.train: no image in", "folder; looked for .jpg"]),
    ("data.train=nowhere", ["data.train: nowhere: no such file or folder", "relative paths start at the recipe"]),
    ("data.train=text.txt", ["text.txt' is a file but no .tar; allowed: a folder, FILE.tar"]),
    ("data.train=beside", ["data.train: 1 images lie beside the class folders (a, b, ...)"]),
    ("data.train=one", ["data.train: 1 classes, but the model's head has 2 outputs; give data.class_map"]),
    ("data.train=unreadable", ["data.train: none of 8 images can be read, such as", "a/0.png", "Pillow"]),
    ("data.val=unreadable", ["data.val: none of 8 images can be read, such as", "a/0.png"]),
    ("data.val=folder", ["data.val: no image in"]),
    ("data.calibration=folder", ["data.calibration: no image in"]),
    ("data.train=bad.tar", ["bad.tar is no uncompressed tar"]),
    ("data.train=cut.tar", ["cut.tar is no uncompressed tar"]),
    ("data.train=packed.tar", ["packed.tar is no uncompressed tar", "has to be unpacked first"]),
    ("data.train=good.tar/nothing", ["no image under 'nothing'", "at its top are: photos"]),
    ("data.train=wds/nothing", ["data.train: no shard matches 'nothing'"]),
    ("data.class_map=one.classes", ["data.train:", "1 class(es) that data.class_map does not name: b"]),
    ("data.class_map=three.classes", ["data.train: 3 classes, but the model's head has 2 outputs"]),
    ("data.class_map=twice.classes", ["twice.classes: line 2 repeats 'a' of line 1"]),
    ("data.class_map=gap.classes", ["gap.classes: line 2 is empty"]),
    ("data.class_map=binary.classes", ["data.class_map: cannot read", "binary.classes", "one class name per line"]),
    ("data.class_map=empty.classes", ["empty.classes is empty; one class name per line"]),
    ("data.class_map=folder", ["data.class_map:", "a folder; allowed: a text file"]),
    ("data.class_map=nowhere", ["data.class_map: nowhere: no such file"]),
]
# One file among eight good ones: its name and content, and why it is skipped; None where it is used
ONE: dict[str, tuple[str, bytes | Callable[[Path], object], str | None]] = {
    "corrupt": ("x.png", b"\x89PNG garbage", "cannot identify"),
    "of no bytes": ("x.png", b"", "cannot identify"),
    "cut short": ("x.png", photo()[:200], "truncated"),
    "a text": ("x.jpg", b"hello", "cannot identify"),
    "of floats": ("x.tiff", deep("float"), "floating-point pixels"),
    "a bomb": ("x.png", bomb(30_000, 30_000), "decompression bomb"),
    "a smaller bomb": ("x.png", bomb(11_000, 11_000), "decompression bomb"),
    "a broken link": ("x.png", lambda path: path.symlink_to("nowhere.png"), "a broken link"),
    "a pipe": ("x.png", os.mkfifo, "no regular file"),
    "CMYK": ("x.jpg", photo(mode="CMYK", kind="JPEG"), None),
    "with a palette": ("x.png", photo(mode="P"), None),
    "black and white": ("x.png", photo(mode="1"), None),
    "with alpha": ("x.png", photo(mode="RGBA"), None),
    "of 16 bits": ("x.png", deep("16"), None),
    "animated": ("x.gif", animated(), None),
    "of one pixel": ("x.png", photo(size=(1, 1)), None),
    "of one row": ("x.png", photo(size=(3000, 1)), None),
    "of another kind than its ending": ("x.png", photo(kind="BMP"), None),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.mark.parametrize(("word", "parts"), REFUSED, ids=[word for word, _ in REFUSED])
def test_refused(
    word: str, parts: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    if "unreadable" in word:  # met when the images are first read, in a run that has begun
        assert main(["run", "ok.yaml", "--dir", word, word]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("vitcompress: error: ") and not missing(parts, last)
    else:
        assert not missing(parts, refused(place, ["run", "ok.yaml", word], capsys))


@pytest.mark.parametrize("case", ONE)
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_one_among_good_ones(case: str, place: Path, tmp_path: Path) -> None:
    name, content, reason = ONE[case]
    folder = Path(shutil.copytree(place / "photos", tmp_path / "photos"))
    if isinstance(content, bytes):
        (folder / "a" / name).write_bytes(content)
    else:
        content(folder / "a" / name)

    def bundle(limit: int) -> DataBundle:
        cfg = DataConfig(train=str(folder), input_size=[3, 16, 16], workers=0, max_bad_images=limit)
        return DataBundle(cfg, resolve_preprocess(None, cfg), seed=0)

    found = bundle(1)
    images = sum(len(batch) for batch in found.calibration(100, 4))
    assert len(found.fingerprint()) == 64
    if reason is None:
        assert (images, found.skipped) == (9, [])
        assert all(bool(batch.images.isfinite().all()) for batch in found.calibration(100, 4))
        return
    assert (images, found.skipped) == (8, [f"{folder}: a/{name}"])
    with pytest.raises(TooManyBadImages) as caught:
        list(bundle(0).calibration(100, 4))
    (problem,) = caught.value.problems
    assert all(part in problem for part in ("data.train: 1 unreadable images", f"a/{name}", reason, "allowed: 0")), (
        problem
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_open_files_are_no_broken_image(workers: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    cfg = DataConfig(train=str(place / "photos"), input_size=[3, 16, 16], workers=workers)
    data = DataBundle(cfg, resolve_preprocess(None, cfg), seed=0)
    monkeypatch.setattr(FolderReader, "open", refuse)
    with pytest.raises(ReadFault) as caught:
        list(data.calibration(100, 4))
    assert str(caught.value).endswith("Too many open files; put that right, and the same command goes on")
    assert "photos: " in str(caught.value) and "Traceback" not in str(caught.value)
    assert data.skipped == []


def test_names_that_have_no_order(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "photos", tmp_path / "photos"))
    (folder / "a").rename(folder / "5²")
    cfg = DataConfig(train=str(folder), input_size=[3, 16, 16])
    with pytest.raises(InputError, match=r"^data.train: .*rename those with digits other than 0 to 9"):
        DataBundle(cfg, resolve_preprocess(None, cfg), seed=0)


def test_a_run_skips_one_by_name_and_counts_it(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(place / "photos", tmp_path / "photos"))
    (folder / "b" / "broken.png").write_bytes(photo()[:100])
    assert main(["run", str(place / "ok.yaml"), "--dir", str(tmp_path / "run"), f"data.train={folder}"]) == 0
    found = json.loads((tmp_path / "run" / "report.json").read_text())["data"]
    assert found["train_images"] == 9 and found["skipped"] == ["photos: b/broken.png"]
    assert "Traceback" not in capsys.readouterr().err
