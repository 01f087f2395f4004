"""A folder with one good recipe and one of every kind of bad file, and what every refusal must look like."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from act.cli.main import main

NAME = "vit_tiny_patch16_224"
KWARGS: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
RECIPE = f"""\
model: {{name: {NAME}, num_classes: 2, kwargs: {{img_size: 16, patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}}}}
data: {{train: photos, workers: 0}}
QuantPost: {{images: 8}}
export: {{benchmark: false}}
"""


class RunsCode:
    """Unpickled, it makes the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def photo(seed: int = 0, mode: str = "RGB", kind: str = "PNG", size: tuple[int, int] = (20, 20), **more: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **more)
    return stream.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def photos(folder: Path, classes: Sequence[str] = ("a", "b"), each: int = 4) -> Path:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            (folder / name / f"{number}.png").write_bytes(photo(number))
    return folder


def state(**changes: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = timm.create_model(NAME, **{"num_classes": 2, **KWARGS, **changes})
    return dict(model.state_dict())


def make_place(folder: Path) -> Path:
    """Everything that the tables name."""
    (folder / "ok.yaml").write_text(RECIPE)
    (folder / "space.yaml").write_text("QuantPost.weight_bits: {choice: [4, 8]}\n")
    (folder / "empty.yaml").write_text("")
    (folder / "text.txt").write_text("hello")
    (folder / "folder").mkdir()
    (folder / "folder" / "readme.txt").write_text("no image")
    for name in ("bad.onnx", "bad.safetensors", "bad.tar", "bad.pt"):
        (folder / name).write_bytes(b"garbage" * 50)
    for name in ("zero.onnx", "zero.safetensors", "zero.pt", "page.bin"):
        (folder / name).write_bytes(b"")
    (folder / "bad.xml").write_text("<net")
    (folder / "page.xml").write_text("<html></html>")
    (folder / "alone.xml").write_text("<net></net>")
    _images(folder)
    _checkpoints(folder)
    return folder


def _images(folder: Path) -> None:
    photos(folder / "photos")
    photos(folder / "one", ["a"])
    photos(folder / "beside")
    (folder / "beside" / "c.png").write_bytes(photo())
    photos(folder / "unreadable")
    for path in (folder / "unreadable").rglob("*.png"):
        path.write_bytes(b"x")
    for name, mode in (("good.tar", "w"), ("packed.tar", "w:gz")):
        with tarfile.open(folder / name, mode) as archive:  # type: ignore[call-overload]
            archive.add(folder / "photos", "photos")
    (folder / "cut.tar").write_bytes((folder / "good.tar").read_bytes()[:3000])
    for name, content in {"one": b"a\n", "three": b"a\nb\nc\n", "twice": b"a\na\n", "gap": b"a\n\nb\n"}.items():
        (folder / f"{name}.classes").write_bytes(content)
    (folder / "binary.classes").write_bytes(b"\xff\xfe\0")
    (folder / "empty.classes").write_bytes(b"")


def _checkpoints(folder: Path) -> None:
    good = state()
    for name, tensors in {
        "ok": good,
        "seven": state(num_classes=7),
        "deeper": state(depth=2),
        "other": dict(timm.create_model("test_vit", num_classes=2).state_dict()),
        "nan": good | {"head.weight": torch.full_like(good["head.weight"], float("nan"))},
        "ints": good | {"head.weight": good["head.weight"].to(torch.int64)},
    }.items():
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "ok.safetensors").read_bytes()[:5000])
    torch.save(good, folder / "ok.pt")
    (folder / "cut.pt").write_bytes((folder / "ok.pt").read_bytes()[:5000])
    torch.save({"model": RunsCode(folder / "it-ran")}, folder / "code.pt")
    (folder / "code.bin").write_bytes(pickle.dumps(RunsCode(folder / "it-ran")))
    torch.save([1, 2], folder / "list.pt")
    torch.save({"a": 1}, folder / "numbers.pt")
    torch.save(timm.create_model("test_vit"), folder / "module.pt")


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and time of change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[path.relative_to(folder).as_posix()] = (status.st_size if path.is_file() else 0, status.st_mtime_ns)
    return found


def missing(parts: Sequence[str], line: str) -> list[tuple[str, str]]:
    """What of `parts` is not in `line`, with the line."""
    return [(part, line) for part in parts if part not in line]


def the_refusal(lines: Sequence[str]) -> str:
    """The one line there is, in the style of the command."""
    assert len(lines) == 1, lines
    assert lines[0].startswith("vitcompress: error: ") and len(lines[0]) < 900, lines
    assert not any(word in lines[0] for word in ("Traceback", "should not happen")), lines
    return lines[0]


def refused(place: Path, argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which `vitcompress argv` in `place` exits with 2, leaving no trace."""
    before = tree(place)
    capsys.readouterr()
    try:
        code: object = main(list(argv))
    except SystemExit as left:
        code = left.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), (code, out, err)
    line = the_refusal(err.splitlines())
    after = tree(place)
    # The times of folders change where something was made and removed again.
    assert {name: entry for name, entry in after.items() if (place / name).is_file()} == {
        name: entry for name, entry in before.items() if (place / name).is_file()
    }
    assert after.keys() == before.keys()
    return line


def one_line(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2, most: int = 1) -> str:
    capsys.readouterr()
    assert main(list(argv)) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("vitcompress: error: ") for line in lines), lines
    assert len(lines) <= most and "should not happen" not in lines[0], lines
    return lines[0]
