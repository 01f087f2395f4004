"""The files to measure: named one by one, or taken from a finished run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from act.backends.onnx_guard import check_external_data
from act.backends.openvino import check_ir
from act.errors import InputError
from act.run.atomic import sha256_file

SUFFIXES = (".onnx", ".xml")
ARTIFACT, BASELINE, PEER = "artifact", "baseline", "peer"


@dataclass(frozen=True)
class Source:
    """A file, what to call it, and the figures (`top1`, `agreement`, in percent) known of it, by runtime
    (`Variant.runtime`). `named`: asked for by itself, not found in a run folder, so it must open somewhere."""

    name: str
    path: Path
    role: str = ARTIFACT
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    named: bool = True

    @property
    def files(self) -> list[Path]:
        """The file, and the weights beside it for OpenVINO's IR."""
        weights = self.path.with_suffix(".bin")
        return [self.path, weights] if self.path.suffix == ".xml" and weights.is_file() else [self.path]

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(path.stat().st_size for path in self.files)

    def as_json(self) -> dict[str, Any]:
        """Name, role, path, size, and the SHA-256 of each file."""
        hashes = {path.name: sha256_file(path) for path in self.files}
        return {"name": self.name, "role": self.role, "path": str(self.path), "bytes": self.bytes, "sha256": hashes}


def find_sources(paths: Sequence[Path], baseline: Path | None) -> list[Source]:
    """Every file that `paths` name, each a file or a finished run folder, the baseline first.

    The baseline is `baseline`, else the FP32 export that the run folders keep, else there is none.

    Raises:
        InputError: a path that cannot be used, or run folders with different originals and no `baseline`.
    """
    problems: list[str] = []
    found: list[Source] = []
    originals: list[Source] = []
    for path in dict.fromkeys(paths):
        try:
            found += _run_folder(path, originals) if path.is_dir() else [_file(path, ARTIFACT)]
        except InputError as error:
            problems += error.problems
    if baseline is not None:
        try:
            originals = [_file(baseline, BASELINE)]
        except InputError as error:
            problems += [f"--baseline: {problem}" for problem in error.problems]
    elif len({sha256_file(original.path) for original in originals}) > 1:
        problems.append("the run folders are of different originals; give --baseline the one to compare with")
    if problems:
        raise InputError(problems)
    return _distinct([*originals[:1], *found])


def _file(path: Path, role: str) -> Source:
    if not path.is_file():
        raise InputError(f"{path}: no such file or run folder")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: of unknown kind; allowed: {', '.join(SUFFIXES)}, or a finished run folder")
    if path.suffix == ".xml":
        check_ir(path)
    return Source("original" if role == BASELINE else path.name, path, role)


def _run_folder(folder: Path, originals: list[Source]) -> list[Source]:
    """The artifacts of a run; its original is added to `originals`."""
    from act.run.folder import RunFolder
    from act.run.reading import check_contained
    from act.run.report import read_report

    check_contained(folder)
    report = read_report(RunFolder(folder))
    if report is None:
        raise InputError(
            f"{folder}: no finished run: it has no report.json that can be read; name a file, or finish the run"
        )
    found = []
    for entry in report["artifacts"]:
        path = folder / entry["path"]
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{path}: in the run's report.json, but no file of the run; run it again")
        if path.suffix not in SUFFIXES:
            continue
        # A report without timings does not say which runtime scored the file; each format has one.
        backend = next(iter(entry.get("latency", {})), None) or ("openvino" if path.suffix == ".xml" else "onnxruntime")
        found.append(Source(f"{folder.name}/{path.name}", path, ARTIFACT, {backend: _figures(entry)}, False))
    original = folder / "baseline" / "model_fp32.onnx"
    if original.is_file():
        # The run scored its original in torch, whose predictions its FP32 export shares.
        figures = _figures(report["baseline"] | {"agreement": 100.0})
        originals.append(Source("original", original, BASELINE, {"onnxruntime": figures, "openvino": figures}))
    return found


def _figures(entry: dict[str, Any]) -> dict[str, float]:
    return {name: float(entry[name]) for name in ("top1", "agreement") if isinstance(entry.get(name), int | float)}


def _distinct(sources: Iterable[Source]) -> list[Source]:
    """The same files, those of one name called by their paths."""
    listed = list(sources)
    names = [source.name for source in listed]
    return [source if names.count(source.name) == 1 else replace(source, name=str(source.path)) for source in listed]


def input_size(path: Path) -> tuple[int, int, int]:
    """[channels, height, width] of the file's first input; InputError when they are not fixed."""
    dims = _openvino_input(path) if path.suffix == ".xml" else _onnx_input(path)
    if len(dims) != 4 or not all(size > 0 for size in dims[1:]):
        raise InputError(f"{path}: its input has the shape {dims}; expected [batch, channels, height, width]")
    return dims[1], dims[2], dims[3]


def common_input_size(sources: Sequence[Source]) -> tuple[int, int, int]:
    """The input size of all files; InputError when they differ."""
    sizes = {source.name: input_size(source.path) for source in sources}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {'x'.join(map(str, size))}" for name, size in sizes.items())
        raise InputError(f"the files take images of different sizes and cannot be compared: {shown}")
    return next(iter(sizes.values()))


def _onnx_input(path: Path) -> list[int]:
    import onnx

    check_external_data(path)
    graph = onnx.load(str(path), load_external_data=False).graph
    held = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in held]
    if not inputs:
        raise InputError(f"{path}: its graph has no input")
    return [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]


def _openvino_input(path: Path) -> list[int]:
    from act.backends.openvino import OpenVino

    reason = OpenVino().available()
    if reason is not None:
        raise InputError(f"{path}: only OpenVINO reads it: {reason}")
    import openvino

    try:
        shape = openvino.Core().read_model(str(path)).input(0).get_partial_shape()
    except RuntimeError as error:
        raise InputError(f"{path}: OpenVINO cannot read it: {str(error).strip().splitlines()[-1][:300]}") from error
    return [int(dim.get_length()) if dim.is_static else 0 for dim in shape]
