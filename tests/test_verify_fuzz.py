"""Whatever is done to the files of an artifact, `verify` finds it and never crashes."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_support import SIZE, images, standard_artifact, standard_edits
from hypothesis import given, settings
from hypothesis import strategies as st

from act.backends.onnxruntime import OnnxRuntime
from act.cli.main import main
from act.errors import InputError
from act.rebuild import load_model_folder, load_packed_model, unique_tensors
from act.storage.file import PACKED_FILE, read_packed, write_packed
from act.storage.pack import pack_tensors
from act.verify.folder import verify_folder, write_manifest
from act.verify.parity import relative_difference, torch_logits
from act.verify.tensorrt import lint_file

FILES = ["model.onnx", "model.safetensors", "arch.json", PACKED_FILE, "manifest.json"]
QUICK = settings(max_examples=25, deadline=None)


@st.composite
def damages(draw: st.DrawFn, names: list[str]) -> tuple[str, str, float, int]:
    """What is done, to which file, where in it (0 to 1), and a number for it."""
    kind = draw(st.sampled_from(["flip", "flip", "flip", "cut", "grow", "delete", "empty", "swap", "overwrite"]))
    return kind, draw(st.sampled_from(names)), draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(0, 255))


def damage(folder: Path, kind: str, name: str, place: float, number: int) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    if kind == "flip":
        content[at] ^= 1 << number % 8
    elif kind == "overwrite":
        content[at : at + 16] = bytes((byte + 1 + number) % 256 for byte in content[at : at + 16])
        content[at] ^= 1  # never what was there
    elif kind == "cut":
        del content[at:]
    elif kind == "grow":
        content += bytes([number] * (1 + number))
    elif kind == "empty":
        content.clear()
    if kind == "delete":
        path.unlink()
    elif kind == "swap":
        other = folder / FILES[(FILES.index(name) + 1 + number % (len(FILES) - 1)) % len(FILES)]
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    else:
        path.write_bytes(content)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny 2:4 int8 artifact with its packed file, sealed."""
    folder = tmp_path_factory.mktemp("sealed") / "artifact"
    shutil.copytree(standard_artifact()[0], folder)
    tensors, shared = unique_tensors(standard_artifact()[1].state_dict())
    metadata = {"recipe": "tiny", "preprocess": json.dumps({"input_size": list(SIZE)})}
    write_packed(pack_tensors(folder / PACKED_FILE, tensors, standard_edits(), shared, metadata).file)
    write_manifest(folder, "0" * 64)
    assert all(check.holds for check in verify_folder(folder))
    return folder


@contextlib.contextmanager
def copied(folder: Path) -> Iterator[Path]:
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


@QUICK
@given(what=damages(FILES))
def test_any_damage_is_found(artifact: Path, what: tuple[str, str, float, int]) -> None:
    with copied(artifact) as folder:
        damage(folder, *what)
        broken = [check for check in verify_folder(folder) if not check.holds]
        assert broken and all(check.detail for check in broken), what


@QUICK
@given(what=damages([name for name in FILES if name != "manifest.json"]))
def test_damage_with_a_new_manifest_is_found_or_changes_nothing(
    artifact: Path, what: tuple[str, str, float, int]
) -> None:
    """Bits of names and remarks may change unnoticed when the checksums are made anew; what is computed may not."""
    pixels = images(4).numpy()
    with copied(artifact) as folder:
        damage(folder, *what)
        write_manifest(folder)
        if not all(check.holds for check in verify_folder(folder)):
            return
        wanted = torch_logits(standard_artifact()[1], pixels)
        assert np.array_equal(torch_logits(load_model_folder(folder), pixels), wanted)
        sessions = [OnnxRuntime().load(place / "model.onnx") for place in (folder, artifact)]
        assert relative_difference(*(session.run(pixels) for session in sessions)) < 0.05
        if (folder / PACKED_FILE).is_file():
            packed = torch_logits(load_packed_model(read_packed(folder / PACKED_FILE)), pixels)
            assert np.array_equal(packed, wanted)


@QUICK
@given(what=damages(FILES))
def test_readers_refuse_damaged_files_in_one_line(artifact: Path, what: tuple[str, str, float, int]) -> None:
    readers: list[Any] = [
        load_model_folder,
        lambda folder: load_packed_model(read_packed(folder / PACKED_FILE)),
        lambda folder: lint_file(folder / "model.onnx"),
    ]
    with copied(artifact) as folder, torch.no_grad():
        damage(folder, *what)
        for reader in readers:
            try:
                reader(folder)
            except InputError as error:
                assert all(problem and "\n" not in problem for problem in error.problems)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["files"]["arch.json"].update(bytes=1),
        lambda manifest: manifest["files"]["arch.json"].update(more=1),
        lambda manifest: manifest.update(recipe_hash="1" * 64),
        lambda manifest: manifest.update(recipe_hash=0),
        lambda manifest: manifest.update(more=1),
        lambda manifest: manifest.update(files=[]),
    ],
)
def test_every_entry_of_the_manifest_counts(artifact: Path, change: Any) -> None:
    with copied(artifact) as folder:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        assert [check.name for check in verify_folder(folder) if not check.holds] == ["checksums"]


def test_damage_is_exit_code_3_and_an_empty_folder_2(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with copied(artifact) as folder:
        damage(folder, "flip", "model.onnx", 0.5, 3)
        assert main(["verify", str(folder)]) == 3
        out, err = capsys.readouterr()
        assert "FAILS" in out and err == ""
    assert main(["verify", str(tmp_path)]) == 2


@pytest.mark.parametrize("content", [b"\xff\0 no JSON", b"", b"[]", b"{}", b"null", b"[" * 100_000])
@pytest.mark.parametrize("name", ["report.json", "artifact/arch.json", "artifact/preprocess.json"])
def test_a_run_folder_whose_records_are_damaged(
    name: str, content: bytes, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`analyze`, `bench` and `verify --target tensorrt` read these files as well."""
    run = tmp_path / "run"
    shutil.copytree(artifact, run / "artifact")
    (run / "artifact" / "preprocess.json").write_text(json.dumps({"input_size": list(SIZE)}))
    (run / name).write_bytes(content)
    verb = ["bench"] if name == "report.json" else ["analyze"]
    assert main([*verb, str(run)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and Path(name).name in err and "should not happen" not in err
    if name == "artifact/arch.json":
        assert main(["verify", str(run), "--target", "tensorrt"]) == 2


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda arch: arch["base"]["kwargs"].update(checkpoint_path="x.pth"), "would read another file"),
        (lambda arch: arch["base"].update(kwargs=[1]), "base.kwargs: must be an object"),
        (lambda arch: arch["base"].update(num_classes=-1), "base.num_classes: -1"),
        (lambda arch: arch["base"].update(name="no_such_model"), "no model 'no_such_model'"),
        (lambda arch: arch["edits"].append({"op": "no_such_edit"}), "no_such_edit"),
    ],
)
def test_analyze_takes_no_base_model_that_reads_files(
    change: Any, part: str, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(artifact, tmp_path / "artifact")
    arch = json.loads((artifact / "arch.json").read_text())
    change(arch)
    (tmp_path / "artifact" / "arch.json").write_text(json.dumps(arch))
    (tmp_path / "artifact" / "preprocess.json").write_text(json.dumps({"input_size": list(SIZE)}))
    assert main(["analyze", str(tmp_path)]) == 2
    assert part in capsys.readouterr().err
