"""When TensorRT runs 2:4 weights densely: try the file's products in other forms, measure each, keep the fastest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx

from act.backends.tensorrt import Engine, EngineOptions, TensorRtSession, build_engine, import_tensorrt
from act.backends.tensorrt_inspector import EngineLayer, summary
from act.errors import ActError, ExportError
from act.export.patterns import drop_dead
from act.export.tensorrt_variants import as_convolution, as_gemm, float_weights


@dataclass(frozen=True)
class Variant:
    """A form of the file. `rewrite` changes the model in place and names what it changed; `sparse`: 2:4 kernels are
    allowed."""

    name: str
    rewrite: Callable[[onnx.ModelProto], list[str]] | None
    sparse: bool = True


@dataclass(frozen=True)
class Measured:
    """Milliseconds per batch, and how many of the eligible layers run a sparse tactic."""

    milliseconds: float
    eligible: int
    sparse: int


@dataclass(frozen=True)
class Tried:
    """One variant: its file and what was measured, or why not."""

    variant: str
    path: Path | None
    measured: Measured | None
    failure: str = ""


Measure = Callable[[Path, bool], Measured]
EXPORTED = Variant("as exported", None)
DENSE = Variant("dense", None, sparse=False)
FALLBACKS = (
    Variant("float weights with Q/DQ", float_weights),
    Variant("Gemm", as_gemm),
    Variant("1x1 convolution", as_convolution),
)


def choose(source: Path, folder: Path, measure: Measure) -> tuple[Tried, list[Tried]]:
    """The fastest form of the TensorRT file `source`, and every form that was tried, in order.

    `measure(path, sparse)` builds and times an engine; an ActError or RuntimeError of it rules that form out. The file
    as exported comes first. If all its eligible layers run sparse, only the dense form is measured besides, since a
    sparse engine must not be slower than that; else the other forms follow, written to `folder`. ExportError if no
    form can be measured.
    """
    tried = [_try(EXPORTED, source, folder, measure)]
    first = tried[0].measured
    # Without eligible layers no form can be sparse, so only the dense engine is left to compare with.
    if first is None or first.sparse < first.eligible:
        tried += [_try(variant, source, folder, measure) for variant in FALLBACKS]
    tried.append(_try(DENSE, source, folder, measure))
    done = [(item.measured.milliseconds, index) for index, item in enumerate(tried) if item.measured is not None]
    if not done:
        raise ExportError(f"{source}: no form of it runs: {'; '.join(f'{t.variant}: {t.failure}' for t in tried)}")
    return tried[min(done)[1]], tried


def _try(variant: Variant, source: Path, folder: Path, measure: Measure) -> Tried:
    path = source
    if variant.rewrite is not None:
        model = onnx.load(str(source))
        if not variant.rewrite(model):
            return Tried(variant.name, None, None, "no product of the file can take this form")
        drop_dead(model.graph)
        words = "".join(letter if letter.isalnum() else "-" for letter in variant.name.lower())
        path = folder / f"{source.stem}.{words}.onnx"
        onnx.save_model(model, str(path))
    try:
        return Tried(variant.name, path, measure(path, variant.sparse))
    except (ActError, RuntimeError) as error:
        return Tried(variant.name, path, None, str(error).splitlines()[0] if str(error) else type(error).__name__)


@dataclass
class EngineMeasure:
    """A `Measure` that builds and times engines on this machine's GPU, and keeps each engine and its layers.

    `sparse_nodes`: ONNX nodes with 2:4 weights; `input_size` [channels, height, width]; times are medians of `runs`
    runs of the expected batch after 5 to warm up, copies of images and logits included.
    """

    device: ClassVar[str] = "cuda"
    options: EngineOptions
    input_size: tuple[int, int, int]
    sparse_nodes: tuple[str, ...]
    runs: int = 50
    engines: dict[tuple[Path, bool], tuple[Engine, list[EngineLayer]]] = field(default_factory=dict)

    def __call__(self, path: Path, sparse: bool) -> Measured:
        engine = build_engine(path, replace(self.options, sparse=sparse))
        session = TensorRtSession(import_tensorrt(), engine.plan, self.device)
        shape = (self.options.batches[1], *self.input_size)
        images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        seconds = []
        for number in range(5 + self.runs):
            started = time.perf_counter()
            session.run(images)
            seconds += [time.perf_counter() - started] if number >= 5 else []
        layers = engine.layers(self.sparse_nodes, session.layer_times(images))
        self.engines[path, sparse] = (engine, layers)
        counts = summary(layers)
        return Measured(1000 * float(np.median(seconds)), counts["eligible"], counts["sparse"])
