"""`vitcompress eval`: score an exported file with its own runtime."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act.cli.common import json_argument, read
from act.cli.output import print_json, table
from act.errors import InputError

if TYPE_CHECKING:
    from act.backends import Session

MAX_THREADS = 4096  # as export.threads

HELP = "score an exported file on the validation images of a recipe"
DESCRIPTION = """\
Opens an exported file in a runtime and scores it on data.val of a recipe: top-1 when the images are labelled, and the
share of predictions that equal those of the recipe's original model. A packed file (.safetensors) is scored by torch,
from the arch.json beside it."""
EPILOG = """\
examples:
  vitcompress eval runs/quickstart/artifact/model.onnx --recipe quickstart
  vitcompress eval runs/quickstart/artifact/model.packed.safetensors --recipe quickstart
  vitcompress eval model.onnx --recipe runs/mine/recipe.yaml data.val=photos --no-original --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("file", metavar="FILE", type=Path, help="an exported model")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="changes to the recipe")
    parser.add_argument("--recipe", required=True, metavar="RECIPE", help="names the images and how they are prepared")
    parser.add_argument("--backend", help="runtime to use (default: onnxruntime; torch for a packed file); see doctor")
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="threads of the runtime (default: all cores)"
    )
    parser.add_argument("--no-original", action="store_true", help="do not run the original for comparison")
    json_argument(parser)


def command(args: argparse.Namespace) -> int:
    """Score and print."""
    recipe = read(args)
    if recipe.data.val is None:
        raise InputError(f"{args.recipe}: data.val: not given; write data.val=FOLDER after the options")
    if not args.file.is_file():
        kind = "a folder; name one file in it" if args.file.is_dir() else "no such file"
        raise InputError(f"{args.file}: {kind}, such as artifact/model.onnx of a run")
    # Runtimes start every thread they are asked for, whatever the machine has.
    if not 0 <= args.threads <= MAX_THREADS:
        raise InputError(f"--threads: {args.threads}; allowed: 0 (all cores) to {MAX_THREADS}")
    from act.data.bundle import DataBundle
    from act.data.preprocess import resolve_preprocess
    from act.models import load_model
    from act.run.evaluate import evaluate
    from act.run.metrics import ExportedModule

    backend, session = _open(args.file, args.backend, args.threads)
    original = load_model(recipe.model)
    recipe.data.train = recipe.data.calibration = None  # only val is read here, so the others need not be there
    data = DataBundle(recipe.data, resolve_preprocess(original, recipe.data), recipe.seed)
    reference = None
    if not args.no_original:
        reference = evaluate(original, data.val(recipe.data.batch_size))["predictions"]
    result = evaluate(ExportedModule(session.run), data.val(recipe.data.batch_size), reference)
    figures: dict[str, Any] = {name: result[name] for name in ("images", "top1", "agreement") if name in result}
    if args.json:
        print_json({"file": str(args.file), "backend": backend, **figures})
        return 0
    rows = [[name, str(value) if name == "images" else f"{value:.2f} %"] for name, value in figures.items()]
    table(f"{args.file} in {backend}", ["figure", "value"], rows, right=["value"])
    return 0


def _open(file: Path, backend: str | None, threads: int) -> tuple[str, Session]:
    """The file opened, and the name of its runtime."""
    from act.backends import get_backend

    if file.suffix != ".safetensors":
        return backend or "onnxruntime", get_backend(backend or "onnxruntime").load(file, threads=threads)
    if backend not in (None, "torch"):
        raise InputError(f"--backend: {backend}: a packed file is scored by torch; leave --backend out")
    from act.storage.session import PackedSession

    return "torch", PackedSession(file, threads)
