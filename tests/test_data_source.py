"""Where images may lie, how they decode, and what their labels mean."""

from __future__ import annotations

import builtins
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from act.data.decode import UNREADABLE, decode
from act.data.source import ImageSource, load_class_map
from act.errors import InputError


def png(value: int = 0, size: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (size, size), value).save(stream, "PNG")
    return stream.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def content(source: ImageSource) -> list[tuple[int, int]]:
    """(grey value, label) of each image."""
    return [(image.getpixel((0, 0))[0], label) for image, label in (source[i] for i in range(len(source)))]


CLASSES = {"c10/a.png": png(1), "c9/b.PNG": png(2), "c9/c.png": png(3), "c9/notes.txt": b"no image"}


def test_class_folder_in_natural_order(tmp_path: Path) -> None:
    source = ImageSource(str(write(tmp_path, CLASSES)))
    assert source.class_names == ["c9", "c10"] and source.labelled
    assert content(source) == [(2, 0), (3, 0), (1, 1)]


def test_class_map_gives_the_index_of_the_head(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("x\nc10\ny\nc9\n")
    classes = load_class_map(str(tmp_path / "classes.txt"))
    assert classes == ["x", "c10", "y", "c9"]
    source = ImageSource(str(write(tmp_path / "train", CLASSES)), classes)
    assert sorted(content(source)) == [(1, 1), (2, 3), (3, 3)]


def test_class_missing_in_the_map_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 class\(es\) that data.class_map does not name: c10"):
        ImageSource(str(write(tmp_path, CLASSES)), ["c9"])


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\n\nb\n", "line 2 is empty"), ("a\nb\na\n", "line 3 repeats 'a' of line 1"), ("", "is empty")],
)
def test_bad_class_maps(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        load_class_map(str(tmp_path / "classes.txt"))


def test_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    source = ImageSource(str(write(tmp_path, {"a.png": png(1), "b.png": png(2)})), ["some", "classes"])
    assert not source.labelled and content(source) == [(1, -1), (2, -1)]


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 images lie beside the class folders"):
        ImageSource(str(write(tmp_path, {**CLASSES, "d.png": png()})))


def test_class_folder_with_one_common_inner_folder(tmp_path: Path) -> None:
    source = ImageSource(str(write(tmp_path, {"n1/images/a.png": png(1), "n2/images/b.png": png(2)})))
    assert source.class_names == ["n1", "n2"] and content(source) == [(1, 0), (2, 1)]


def test_tar_and_a_folder_in_it(tmp_path: Path) -> None:
    files = {**{f"./train/{name}": data for name, data in CLASSES.items()}, "val/c9/z.webp.png": png(7)}
    tar = write_tar(tmp_path / "set.tar", files)
    train = ImageSource(f"{tar}/train")
    assert train.class_names == ["c9", "c10"] and content(train) == [(2, 0), (3, 0), (1, 1)]
    assert content(ImageSource(f"{tar}/val", train.class_names)) == [(7, 0)]
    # Names inside, sizes and labels are those of the unpacked folder, so the fingerprint is too.
    assert train.fingerprint() == ImageSource(str(write(tmp_path / "copy", CLASSES))).fingerprint()


@pytest.mark.parametrize("kept", [2 * 1024, 2 * 1024 + 100, 3 * 1024 + 100])
def test_a_tar_that_was_cut_short_or_damaged_does_not_lose_images_in_silence(tmp_path: Path, kept: int) -> None:
    tar = write_tar(tmp_path / "set.tar", {f"c/{number}.png": png(number) for number in range(4)})
    whole = tar.read_bytes()
    for content in (whole[:kept], whole[:2048] + b"?" * 512 + whole[2560:]):
        tar.write_bytes(content)
        with pytest.raises(InputError, match=r"set\.tar is (damaged or cut short after|no uncompressed tar)"):
            ImageSource(str(tar))


def test_fingerprint_sees_sizes_names_and_labels(tmp_path: Path) -> None:
    first = ImageSource(str(write(tmp_path / "a", CLASSES)))
    prints = {first.fingerprint()}
    prints.add(ImageSource(str(write(tmp_path / "b", {**CLASSES, "c9/b.PNG": png(2, 40)}))).fingerprint())
    prints.add(ImageSource(str(write(tmp_path / "c", {**CLASSES, "c9/d.png": png(2)}))).fingerprint())
    prints.add(ImageSource(str(tmp_path / "a"), ["c10", "c9"]).fingerprint())
    assert len(prints) == 4


def test_fingerprint_sees_a_changed_image_of_the_same_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprint() -> str:
        return ImageSource(str(tmp_path)).fingerprint()

    files = {f"c/{number}.ppm": b"P5 4 4 255 " + bytes([number] * 16) for number in range(8)}
    first = write(tmp_path, files) and fingerprint()
    write(tmp_path, files)  # written again, the same content
    assert fingerprint() == first
    write(tmp_path, {"c/5.ppm": b"P5 4 4 255 " + bytes(16)})
    assert fingerprint() != first
    # Of many images it is a sample that is looked at: here those numbered 0, 2, 4 and 6, of each the first 12 bytes.
    monkeypatch.setattr("act.data.source.HASHED_IMAGES", 7)
    monkeypatch.setattr("act.data.source.SAMPLE", 4)
    monkeypatch.setattr("act.data.source.PART", 12)
    first = fingerprint()
    write(tmp_path, {"c/5.ppm": files["c/5.ppm"], "c/4.ppm": files["c/4.ppm"][:12] + bytes(15)})
    assert fingerprint() == first
    write(tmp_path, {"c/4.ppm": files["c/1.ppm"]})
    assert fingerprint() != first


def test_webdataset_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-1.tar", {"k0.png": png(1), "k0.cls": b"4\n", "k1.seg.png": png(9), "k1.cls": b"0"})
    write_tar(tmp_path / "s-2.tar", {"k0.cls": b"2", "k0.png": png(3)})
    source = ImageSource(f"wds/{tmp_path}")
    assert content(source) == [(1, 4), (3, 2)] and source.class_names is None
    assert content(ImageSource(f"wds/{tmp_path}/s-2.tar")) == [(3, 2)]
    with pytest.raises(InputError, match=r"class index 4, but data\.class_map has only 3 classes"):
        ImageSource(f"wds/{tmp_path}", ["a", "b", "c"])
    write_tar(tmp_path / "s-3.tar", {"k0.png": png(1)})
    with pytest.raises(InputError, match=r"1 of 3 images have no \.cls"):
        ImageSource(f"wds/{tmp_path}")
    assert not ImageSource(f"wds/{tmp_path}/s-3.tar").labelled


def test_builtin_digits() -> None:
    train, val = ImageSource("builtin:digits.tar/train"), ImageSource("builtin:digits.tar/val")
    assert (len(train), len(val)) == (1438, 359)
    assert train.class_names == val.class_names == [str(digit) for digit in range(10)]
    names = [source.reader.names for source in (train, val)]
    assert not {name.rpartition("/")[2] for name in names[0]} & {name.rpartition("/")[2] for name in names[1]}
    image, label = val[0]
    assert image.size == (8, 8) and image.mode == "RGB" and label == 0


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("nowhere", "does not exist"),
        ("file.jpg", "is a file but no .tar"),
        ("empty", "no image in"),
        ("set.tar/test", "no image under 'test'.*at its top are: train"),
        ("packed.tar", "no uncompressed tar"),
        ("wds/none-*.tar", "no shard matches"),
        ("builtin:../batch.py", "leaves the package"),
    ],
)
def test_bad_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"file.jpg": png(), "empty/readme.txt": b""})
    write_tar(tmp_path / "set.tar", {"train/0/a.png": png()})
    write_tar(tmp_path / "packed.tar", {"train/0/a.png": png()}, "w:gz")
    with pytest.raises(InputError, match=message) as caught:
        ImageSource(location, key="data.val")
    assert str(caught.value).startswith("data.val: ") and "\n" not in str(caught.value)


def test_hugging_face_package_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.partition(".")[0] == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="pip install datasets"):
        ImageSource("hfds/cifar10")


def test_hugging_face_data_set_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write(tmp_path / "data", {f"{split}/{name}": data for split in ("train", "test") for name, data in CLASSES.items()})
    source = ImageSource(f"hfds/{tmp_path / 'data'}@test")
    assert sorted(source.class_names or []) == ["c10", "c9"] and len(source) == 3
    mapped = ImageSource(f"hfds/{tmp_path / 'data'}@test", ["c9", "x", "c10"])
    assert sorted(content(mapped)) == [(1, 2), (2, 0), (3, 0)]
    with pytest.raises(InputError, match="split 'nonsense'"):
        ImageSource(f"hfds/{tmp_path / 'data'}@nonsense")


def test_decode_modes() -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    grey = Image.fromarray(ramp)

    def through(image: Image.Image, kind: str, channels: int = 3) -> np.ndarray:
        stream = io.BytesIO()
        image.save(stream, kind)
        stream.seek(0)
        result = decode(stream, channels)
        assert result.mode == ("RGB" if channels == 3 else "L")
        return np.asarray(result, np.int64)

    expected = np.repeat(ramp[:, :, None], 3, 2).astype(np.int64)
    assert (through(grey, "PNG") == expected).all()
    assert (through(grey, "PNG", 1) == ramp).all()
    assert (through(grey.convert("P"), "PNG") == expected).all()
    assert (through(grey.convert("LA"), "PNG") == expected).all()
    assert (through(Image.fromarray(ramp.astype(np.uint16) * 257), "PNG") == expected).all()
    assert (through(Image.fromarray(ramp.astype(np.int32) * 257), "TIFF") == expected).all()
    assert np.abs(through(grey.convert("RGB").convert("CMYK"), "TIFF") - expected).max() <= 1
    with pytest.raises(ValueError, match="floating-point"):
        through(Image.fromarray(ramp.astype(np.float32)), "TIFF")


@pytest.mark.parametrize("broken", [b"", b"not an image", png(3, 64)[:60], png(3)[:20]])
def test_broken_files_raise_only_what_is_expected(broken: bytes) -> None:
    with pytest.raises(UNREADABLE):
        decode(io.BytesIO(broken), 3)
