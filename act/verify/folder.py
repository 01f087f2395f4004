"""`vitcompress verify`: does an artifact folder hold what it says, down to the single weight?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

from act.errors import InputError
from act.rebuild import ARCH_FILE, TENSOR_FILE, load_model_folder, read_arch, read_tensors
from act.run.atomic import sha256_file
from act.run.reading import check_contained, read_json
from act.storage.file import PACKED_FILE
from act.strategies.base import Invariant
from act.verify.contrib_file import CONTRIB_FILE, contrib_file
from act.verify.manifest import MANIFEST_FILE, check_manifest, recipe_of, write_manifest
from act.verify.match import Expected, constants_match, inputs_match, sparse_weights, weights_match
from act.verify.onnx_file import OnnxFile
from act.verify.openvino_file import OPENVINO_FILE, openvino_file
from act.verify.packed_file import packed_file
from act.verify.parity import check_parity
from act.verify.rules import Broken, checked, standard_onnx, symmetric
from act.verify.tensorrt import TENSORRT_FILE
from act.verify.tensorrt_file import tensorrt_file

__all__ = ["verify_folder", "write_manifest"]

ONNX_FILE = "model.onnx"
ARTIFACT_FILES = (ONNX_FILE, TENSOR_FILE, ARCH_FILE, MANIFEST_FILE)
T = TypeVar("T")


def verify_folder(folder: str | Path, model: nn.Module | None = None) -> list[Invariant]:
    """Check an artifact folder, or a run folder with one in it; one Invariant per promise, broken ones included.

    `model` is the uncompressed base model (edited in place), for artifacts of a module that timm cannot build.
    Damaged files give broken invariants; InputError only if `folder` is no folder or holds nothing of an artifact.
    """
    run = Path(folder)
    if not run.is_dir():
        kind = "a file" if run.exists() else "no such folder"
        raise InputError(f"{run}: {kind}; name a run folder or its artifact folder")
    contained = checked("contained", lambda: _contained(run))
    if not contained.holds:
        return [contained]  # nothing is read through a link that leads elsewhere
    artifact = run / "artifact" if (run / "artifact").is_dir() else run
    if not any((artifact / name).exists() for name in ARTIFACT_FILES) and not (run / "report.json").exists():
        raise InputError(
            f"{run}: holds no artifact (no {', '.join(ARTIFACT_FILES)}); name a run or its artifact folder"
        )
    # A file that cannot be read breaks each rule that needs it, and no other.
    onnx_file = _Once(lambda: OnnxFile(artifact / ONNX_FILE))
    tensors = _Once(lambda: read_tensors(artifact))
    arch = _Once(lambda: read_arch(artifact))
    expected = _Once(lambda: Expected.from_edits(arch()["edits"]))
    found = [
        checked("checksums", lambda: _checksums(artifact, onnx_file)),
        checked("standard ONNX", lambda: standard_onnx(onnx_file())),
        checked("symmetric Q/DQ", lambda: symmetric(onnx_file())),
        checked("weights", lambda: weights_match(onnx_file(), tensors(), expected())),
        checked("constants and scales", lambda: constants_match(onnx_file(), tensors())),
        checked("quantised inputs", lambda: inputs_match(onnx_file(), tensors(), expected())),
        checked("N:M sparsity", lambda: sparse_weights(onnx_file(), tensors(), expected())),
        checked("parity", lambda: _parity(onnx_file(), artifact, arch(), model)),
    ]
    if (artifact / CONTRIB_FILE).is_file():
        found.append(checked("ONNX Runtime file", lambda: contrib_file(artifact / ONNX_FILE, artifact / CONTRIB_FILE)))
    if (artifact / OPENVINO_FILE).is_file():
        found.append(checked("OpenVINO file", lambda: openvino_file(artifact / ONNX_FILE, artifact / OPENVINO_FILE)))
    if (artifact / TENSORRT_FILE).is_file():
        found.append(checked("TensorRT file", lambda: tensorrt_file(onnx_file(), artifact / TENSORRT_FILE)))
    if (artifact / PACKED_FILE).is_file():
        found.append(
            checked("packed file", lambda: packed_file(artifact / PACKED_FILE, onnx_file(), tensors(), arch()))
        )
    if (run / "report.json").is_file():
        found.append(checked("report", lambda: _report(run)))
    return found


class _Once(Generic[T]):
    """A value made on first use; a failure is raised again at each use."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: list[T] = []
        self._error: Exception | None = None

    def __call__(self) -> T:
        if self._error is None and not self._values:
            try:
                self._values.append(self._make())
            except Exception as error:
                self._error = error
        if self._error is not None:
            raise self._error
        return self._values[0]


def _contained(run: Path) -> str:
    try:
        check_contained(run)
    except InputError as error:
        raise Broken(str(error)) from error
    return "no link leads out of the folder"


def _checksums(artifact: Path, file: Callable[[], OnnxFile]) -> str:
    problems = check_manifest(artifact)
    if problems:
        raise Broken("; ".join(problems))
    # Of what the manifest says, this alone is not about a file; the ONNX file says it, too.
    listed, said = recipe_of(artifact), file().metadata.get("recipe_hash")
    if listed is not None and listed != said:
        raise Broken(f"{MANIFEST_FILE}: recipe_hash is not that of {ONNX_FILE}")
    return "no file has changed"


def _parity(file: OnnxFile, artifact: Path, arch: dict[str, Any], model: nn.Module | None) -> str:
    if model is None and arch["base"] is None:
        return "not checked: the base model came as a module; pass it to verify_folder to have it compared"
    return check_parity(file, load_model_folder(artifact, model))


def _report(run: Path) -> str:
    """The files that report.json lists are there, with the sizes and hashes it gives."""
    report = read_json(run / "report.json")
    listed = [item for entry in report["artifacts"] for item in entry.get("files", [entry])]
    for item in listed:
        path = run / item["path"]
        if not path.resolve().is_relative_to(run.resolve()) or not path.is_file():
            raise Broken(f"{item['path']}: not a file of this run")
        if path.stat().st_size != item["bytes"] or sha256_file(path) != item["sha256"]:
            raise Broken(f"{item['path']}: not the file that the report measured")
    return f"{len(listed)} files"
