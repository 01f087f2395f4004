"""`vitcompress engine`: build a TensorRT engine and show which layers really run on integers and sparse."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from act.cli.common import json_argument
from act.cli.output import note, print_json, table
from act.errors import InputError

HELP = "build a TensorRT engine and prove which layers run int8 and 2:4 (needs TensorRT and a GPU)"
DESCRIPTION = """\
Builds an engine from a TensorRT file (export --to tensorrt), times it, and reads from the engine which tactic each
layer got. Where 2:4 weights run dense, other forms of the products are tried, each is measured, the fastest is kept.

Written against the documentation of TensorRT 10 and 11; it has not run on hardware yet."""
EPILOG = """\
writes NAME.engine, NAME.cache (timings, for the next build) and NAME.engine.json (every form tried, every layer) beside
the file

examples:
  vitcompress engine runs/mine
  vitcompress engine model.tensorrt.onnx --batches 1,32,256 --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("path", metavar="PATH", type=Path, help="an ONNX file, or a run folder with a TensorRT file")
    parser.add_argument(
        "--batches", default="1,8,32", metavar="MIN,OPT,MAX", help="smallest, expected, largest (default: %(default)s)"
    )
    json_argument(parser)


def command(args: argparse.Namespace) -> int:
    """Build, choose, write, print."""
    batches = _batches(args.batches)
    from act.backends.tensorrt import EngineOptions, import_tensorrt
    from act.backends.tensorrt_fallback import EngineMeasure, choose
    from act.backends.tensorrt_inspector import summary
    from act.run.atomic import write_bytes, write_json
    from act.verify.onnx_file import OnnxFile
    from act.verify.tensorrt import pick_file, sparse_products

    import_tensorrt()
    source = pick_file(args.path)
    options = EngineOptions(batches, timing_cache=source.with_suffix(".cache"))
    measure = EngineMeasure(options, OnnxFile(source).input_size(), sparse_products(source))
    best, tried = choose(source, source.parent, measure)
    assert best.path is not None
    engine, layers = measure.engines[best.path, best.variant != "dense"]
    write_bytes(source.with_suffix(".engine"), engine.plan)
    forms = [
        {"variant": item.variant, "failure": item.failure}
        | (dataclasses.asdict(item.measured) if item.measured else {})
        for item in tried
    ]
    found: dict[str, Any] = {
        "file": str(source),
        "tensorrt": engine.version,
        "batches": batches,
        "chosen": best.variant,
        "forms": forms,
    }
    found |= {"summary": summary(layers), "sparsity_log": engine.sparsity_log}
    found["layers"] = [dataclasses.asdict(layer) for layer in layers]
    write_json(source.with_suffix(".engine.json"), found)
    if args.json:
        print_json(found)
        return 0
    rows = [
        [t.variant, f"{t.measured.milliseconds:.3f}", f"{t.measured.sparse} of {t.measured.eligible}"]
        if t.measured
        else [t.variant, "", t.failure]
        for t in tried
    ]
    table(f"{source}, TensorRT {engine.version}, batch {batches[1]}", ["form", "ms", "sparse layers"], rows, ["ms"])
    shown = [layer for layer in layers if layer.eligible or layer.int8]
    verdicts = {True: "sparse", False: "dense", None: "unknown"}
    lines = [
        [layer.name, "int8" if layer.int8 else "float", verdicts[layer.sparse] if layer.eligible else "",
         "" if layer.milliseconds is None else f"{layer.milliseconds:.4f}", layer.tactic]
        for layer in shown
    ]  # fmt: skip
    table(f"layers of the form kept ({best.variant})", ["layer", "type", "2:4", "ms", "tactic"], lines, ["ms"])
    note(f"engine, timing cache and all layers are in {source.parent}")
    return 0


def _batches(text: str) -> tuple[int, int, int]:
    words = text.split(",")
    if len(words) != 3 or not all(word.isdecimal() for word in words):
        raise InputError(f"--batches: {text}; write three numbers, smallest, expected and largest, such as 1,8,32")
    low, usual, high = map(int, words)
    if not 1 <= low <= usual <= high:
        raise InputError(f"--batches: {text}; allowed: 1 or more, in rising order")
    return low, usual, high
