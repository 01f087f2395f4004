"""What is timed: each file in each runtime that opens it, and the original also in the runtime's half precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from act.backends import backends
from act.bench.sources import BASELINE, Source
from act.errors import InputError
from act.run.timing import Run

FLOAT = "f32"


@dataclass(frozen=True)
class Variant:
    """A file opened in a backend; `precision` is what is computed in outside integers."""

    source: Source
    backend: str
    precision: str
    run: Run

    @property
    def name(self) -> str:
        """How tables and messages call it."""
        return f"{self.source.name} in {self.backend} {self.precision}"

    @property
    def runtime(self) -> str:
        """Under what the file's figures are kept: those in half precision are others than those in float32."""
        return self.backend if self.precision == FLOAT else f"{self.backend} {self.precision}"

    @property
    def figures(self) -> dict[str, float]:
        """`top1` and `agreement` in percent, as far as they are known."""
        return self.source.figures.get(self.runtime, {})


@dataclass
class Opened:
    """Variants in the order of the files; what was left out, with the reason; by backend its half precision, or the
    reason why it has none."""

    variants: list[Variant] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    half: dict[str, str] = field(default_factory=dict)
    no_half: dict[str, str] = field(default_factory=dict)


def choose_backends(names: Sequence[str] | None) -> tuple[list[str], list[tuple[str, str]]]:
    """The backends to use (all that can run here, or those named), and those left out with their reason.

    Raises:
        InputError: a named backend is unknown or cannot run here.
    """
    from act.backends import get_backend

    if names is not None:
        problems = []
        for name in names:
            try:
                get_backend(name)
            except InputError as error:
                problems += error.problems
        if problems or not names:
            raise InputError(problems or "--backend: names no backend")
        return list(dict.fromkeys(names)), []
    reasons = {name: backend.available() for name, backend in backends().items()}
    usable = [name for name, reason in reasons.items() if reason is None]
    return usable, [(f"backend {name}", reason) for name, reason in reasons.items() if reason is not None]


def open_variants(sources: Sequence[Source], names: Sequence[str], threads: int, half_files: bool = False) -> Opened:
    """Open every file in every backend of `names`; the original also in half precision, and with `half_files` the
    other files too.

    Raises:
        InputError: a file that was named and that none of the backends opens.
    """
    opened = Opened()
    for name in names:
        found, reason = half_precision(name)
        if found is None:
            opened.no_half[name] = reason
        else:
            opened.half[name] = found
    problems = []
    for source in sources:
        refused = []
        for name in names:
            try:
                opened.variants.append(Variant(source, name, FLOAT, _load(name, source.path, threads, FLOAT)))
                if name in opened.half and (half_files or source.role == BASELINE):
                    half = opened.half[name]
                    opened.variants.append(Variant(source, name, half, _load(name, source.path, threads, half)))
            except InputError as error:
                refused.append((f"{source.name} in {name}", " ".join(error.problems)))
        if len(refused) == len(names) and source.named:
            problems += [reason for _, reason in refused]
        opened.skipped += refused
    if problems:
        raise InputError(problems)
    return opened


def half_precision(backend: str) -> tuple[str | None, str]:
    """What a backend calls the half precision that it computes in here, or None and the reason why it has none."""
    if backend == "openvino":
        from act.backends.openvino import precisions

        found = precisions()[1:]
        return (found[0], "") if found else (None, "this CPU has no bf16 or fp16 instructions that OpenVINO uses")
    if backend == "onnxruntime":
        return None, "ONNX Runtime's CPU kernels multiply in float32; fp16 and bf16 graphs are only cast back and forth"
    return None, "this backend chooses its precision by the file"


def _load(backend: str, path: Path, threads: int, precision: str) -> Run:
    if path.suffix == ".xml" and backend != "openvino":
        raise InputError(f"{path}: only openvino reads OpenVINO IR")
    loader: Any = backends()[backend]
    session = loader.load(path, threads) if precision == FLOAT else loader.load(path, threads, precision)
    run: Run = session.run
    return run
