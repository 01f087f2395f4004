"""The files an export can consist of: one entry of `FORMATS` for each name that `export.formats` may hold.

Every format is written by its own function and then treated alike: opened by its runtime, scored, compared with the
torch model, timed, listed in the report, and sealed by the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act.backends import Session, backends, get_backend

if TYPE_CHECKING:
    from torch import nn

    from act.context import Context

MAIN = "onnx"
PACKED = "packed"


@dataclass(frozen=True)
class Job:
    """What a writer gets: the compressed model, the path of the main ONNX file (beside which every other file is put,
    and which is written first), the run's context, and what a file should say of itself."""

    model: nn.Module
    onnx: Path
    ctx: Context
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Written:
    """What a writer leaves: the file that a runtime opens, further files that belong to it, entries for the report."""

    path: Path
    others: tuple[Path, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)


def _always() -> str | None:
    return None


@dataclass(frozen=True)
class Format:
    """How a format is written, and the backend that opens and scores it (`torch` rebuilds the torch model).

    `timed`: whether its speed in that backend means anything. `missing` gives the reason why it cannot be written
    here, or None; it is asked before anything heavy runs.
    """

    write: Callable[[Job], Written]
    backend: str
    timed: bool = True
    missing: Callable[[], str | None] = _always


def write_onnx(job: Job) -> Written:
    """The main file: standard ONNX with Q/DQ."""
    from act.export.onnx import export_onnx

    export_onnx(job.model, job.onnx, job.ctx.input_size, job.ctx.recipe.export.opset, job.metadata)
    return Written(job.onnx)


def write_contrib(job: Job) -> Written:
    """model.onnxruntime.onnx: the main file in ONNX Runtime's own operators, for no other runtime."""
    from act.export.contrib import export_contrib
    from act.run.choice import Form, attention_forms, write_fastest

    target = job.onnx.with_name(f"{job.onnx.stem}.onnxruntime.onnx")
    forms = [Form(attention) for attention in attention_forms(job)]
    notes = write_fastest(
        job, target, "onnxruntime", forms, lambda path, form: export_contrib(job.onnx, path, form.attention)
    )
    return Written(target, notes=notes)


def write_openvino(job: Job) -> Written:
    """model.openvino.xml and .bin, converted from the main ONNX file; weights keep their types."""
    from act.export.openvino import export_openvino, not_padded
    from act.run.choice import Form, attention_forms, padding_forms, write_fastest

    target = job.onnx.with_name(f"{job.onnx.stem}.openvino.xml")
    obstacle = not_padded(job.onnx)
    paddings = padding_forms(job, obstacle)
    forms = [Form(attention, padded) for attention in attention_forms(job) for padded in paddings]
    notes = write_fastest(
        job,
        target,
        "openvino",
        forms,
        lambda path, form: export_openvino(job.onnx, path, form.attention, form.padded),
    )
    if obstacle is not None:
        notes["not_padded"] = obstacle
    return Written(target, (target.with_suffix(".bin"),), notes)


def write_tensorrt(job: Job) -> Written:
    """model.tensorrt.onnx with an FP16 body, and the trtexec commands beside it."""
    import dataclasses

    from act.export.tensorrt import COMMANDS, NOT_RUN, export_tensorrt, trtexec, write_commands
    from act.verify.match import Expected
    from act.verify.tensorrt import TENSORRT_FILE
    from act.verify.tensorrt_products import sparse_kernels

    target, ctx = job.onnx.with_name(TENSORRT_FILE), job.ctx
    sparse = Expected.from_edits(ctx.edits).masks
    done = export_tensorrt(job.onnx, target, sparse)
    for remark in done.remarks:
        ctx.log("tensorrt", f"  {remark}")
    usual = max([ctx.recipe.target.batch, *ctx.recipe.export.benchmark_batches])
    batches = (1, usual, max(32, usual))
    kernels = any(map(sparse_kernels, sparse.values()))
    commands = {str(v): trtexec(target.name, ctx.input_size, batches, kernels, v) for v in (10, 11)}
    write_commands(job.onnx.with_name(COMMANDS), commands)
    notes = {
        "integer_products": done.integer_products,
        "float_products": done.float_products,
        "remarks": done.remarks,
        "findings": [dataclasses.asdict(item) for item in done.findings],
        "commands": commands,
        "executed": f"scored by ONNX Runtime, which computes this file in floating point; {NOT_RUN}",
    }
    return Written(target, notes=notes)


def write_packed(job: Job) -> Written:
    """model.packed.safetensors: N:M and integer weights at the bits they need; torch models are rebuilt from it."""
    import dataclasses

    from act.rebuild import unique_tensors
    from act.storage.file import PACKED_FILE
    from act.storage.file import write_packed as write
    from act.storage.pack import pack_tensors
    from act.storage.sizes import size_report

    target = job.onnx.with_name(PACKED_FILE)
    tensors, shared = unique_tensors(job.model.state_dict())
    packed = pack_tensors(target, tensors, job.ctx.edits, shared, job.metadata)
    write(packed.file)
    sizes = size_report(packed.file, target.stat().st_size)
    job.ctx.log("packed", f"{PACKED_FILE}: {sizes['ratio']:.2f} times smaller than float32", ratio=sizes["ratio"])
    for layer in packed.left:
        job.ctx.log("packed", f"  {layer.name}: {layer.reason}")
    return Written(target, notes=sizes | {"left": [dataclasses.asdict(layer) for layer in packed.left]})


FORMATS: dict[str, Format] = {
    MAIN: Format(write_onnx, "onnxruntime"),
    "onnxruntime": Format(write_contrib, "onnxruntime"),
    "tensorrt": Format(write_tensorrt, "onnxruntime", timed=False),
    "openvino": Format(write_openvino, "openvino", missing=lambda: backends()["openvino"].available()),
    PACKED: Format(write_packed, "torch", timed=False),
}


def open_file(name: str, path: Path, threads: int = 0, base: nn.Module | None = None) -> Session:
    """Open a file of the format called `name` in the runtime it is for, with `threads` threads (0: all cores).

    `base` is the uncompressed model (edited in place), which a packed file of a module that timm cannot build needs.
    """
    if name == PACKED:
        from act.storage.session import PackedSession

        return PackedSession(path, threads, base)
    return get_backend(FORMATS[name].backend).load(path, threads)


def in_order(formats: Iterable[str]) -> list[str]:
    """The names once each, the main file first, since the others are made from it."""
    return sorted(dict.fromkeys(formats), key=lambda name: name != MAIN)


def name_problem(names: Sequence[str]) -> str | None:
    """None where all names are known and the main file is among them; else what is wrong."""
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        return f"{', '.join(unknown) or 'empty'}; allowed: {', '.join(FORMATS)}"
    return None if MAIN in names else f"{', '.join(names)}; add {MAIN}, from which the others are made"


def format_problems(formats: Iterable[str]) -> list[str]:
    """One line for each name that this installation cannot write, and one when the main file is not asked for."""
    names = list(formats)
    problem = name_problem(names)
    problems = [] if problem is None else [f"export.formats: {problem}"]
    for name in names:
        reason = FORMATS[name].missing() if name in FORMATS else None
        if reason is not None:
            problems.append(f"export.formats: {name} cannot be written here: {reason}")
    return problems
