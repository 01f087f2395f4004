"""The artifact: written, opened in a real runtime, scored, compared with torch, timed, and sealed by a manifest."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from act.backends import get_backend
from act.context import Context
from act.data.batch import Batch
from act.data.preprocess import Preprocess
from act.errors import ExportError
from act.export.onnx import export_onnx
from act.plan import Stage
from act.rebuild import save_model
from act.recipe.load import dump_recipe, recipe_hash
from act.run.atomic import sha256_file, write_json, write_text
from act.run.folder import RunFolder
from act.run.goals import needs_timing
from act.run.metrics import ExportedModule
from act.run.stages import PREDICTIONS, Session, check_promises
from act.run.timing import time_in_turns, unsteady
from act.verify.artifact import check_artifact
from act.verify.folder import verify_folder, write_manifest

RUNTIME = "onnxruntime"
DELIVERED = "delivered.json"


def deliver(
    session: Session, model: nn.Module, stages: Sequence[Stage], preprocess: Preprocess
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write the model's files into `artifact/` and measure them.

    Returns the baseline's figures with its latencies added, and the report's entry of each exported file. ExportError
    when a file is not what the torch model is, ActError when a promise of a stage is broken.
    """
    ctx, folder = session.ctx, session.folder.artifact
    folder.mkdir(parents=True, exist_ok=True)
    check_promises(model, stages)
    onnx = folder / "model.onnx"
    save_model(folder, model, session.source, ctx.edits)
    ctx.log("export", f"exporting {onnx}")
    export_onnx(model, onnx, ctx.input_size, ctx.recipe.export.opset, metadata(ctx, preprocess))
    entry: dict[str, Any] = {"format": "onnx", "path": f"{folder.name}/{onnx.name}", "bytes": onnx.stat().st_size}
    entry |= {"sha256": sha256_file(onnx)} | _score(session, model, stages, onnx)
    baseline = dict(session.baseline.figures)
    if ctx.recipe.export.benchmark or needs_timing(ctx.recipe.target):
        times = _time(ctx, {"baseline": session.baseline.onnx, "artifact": onnx})
        baseline["latency"], entry["latency"] = {RUNTIME: times["baseline"]}, {RUNTIME: times["artifact"]}
        entry["speedup"] = {RUNTIME: speedups(times["baseline"], times["artifact"])}
        for batch, factor in entry["speedup"][RUNTIME].items():
            median = times["artifact"][batch]["median_ms"]
            ctx.log("benchmark", f"batch {batch}: {median:.2f} ms, {factor:.2f}x the speed of the original")
        if shaky := unsteady(times):
            ctx.log("warning", f"the machine was busy while timing ({'; '.join(shaky)}): do not rely on these")
    return baseline, [entry]


def seal(session: Session, results: dict[str, Any], preprocess: Preprocess) -> list[dict[str, Any]]:
    """Freeze the recipe with its results beside the files, write the manifest, and verify the folder anew.

    Returns the checks as report entries; ExportError when one of them fails.
    """
    folder, recipe = session.folder.artifact, session.ctx.recipe
    write_text(folder / "recipe.yaml", dump_recipe(dataclasses.replace(recipe, results=results)))
    write_json(folder / "preprocess.json", dataclasses.asdict(preprocess))
    write_manifest(folder, recipe_hash(recipe))
    # A caller's module cannot be rebuilt from its name, so a copy of it is what the tensors are loaded into.
    base = copy.deepcopy(session.original).cpu() if session.source is None else None
    checks = verify_folder(folder, base)
    broken = [f"{check.name}: {check.detail}" for check in checks if not check.holds]
    if broken:
        raise ExportError(f"{folder}: the files do not hold what they must: {'; '.join(broken)}")
    session.ctx.log("verified", f"verified: {', '.join(check.name for check in checks)}")
    return [dataclasses.asdict(check) for check in checks]


def mark_delivered(folder: RunFolder, key: str) -> None:
    """Remember that the artifact and the reports are complete for the inputs hashed in `key`."""
    write_json(folder.path / DELIVERED, {"key": key, "manifest": sha256_file(folder.artifact / "manifest.json")})


def delivered_before(folder: RunFolder, key: str) -> bool:
    """Whether the artifact of `key` is complete and its files are still what its manifest says."""
    manifest = folder.artifact / "manifest.json"
    try:
        mark = json.loads((folder.path / DELIVERED).read_text(encoding="utf-8"))
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        same = all(sha256_file(folder.artifact / name) == entry["sha256"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(mark.get("key") == key and mark.get("manifest") == sha256_file(manifest) and same)


def metadata(ctx: Context, preprocess: Preprocess) -> dict[str, str]:
    """What the exported file says of itself: recipe, model, and how an image becomes its input."""
    recipe = ctx.recipe
    return {
        "recipe": recipe.name,
        "recipe_hash": recipe_hash(recipe),
        "model": recipe.model.name or "module",
        "strategies": ",".join(recipe.strategies),
        "preprocess": json.dumps(dataclasses.asdict(preprocess)),
    }


def speedups(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> dict[str, float]:
    """Median latency before over after, by batch size."""
    return {batch: round(before[batch]["median_ms"] / after[batch]["median_ms"], 4) for batch in after}


def _time(ctx: Context, files: dict[str, Path]) -> dict[str, dict[str, dict[str, float]]]:
    threads = ctx.recipe.export.threads
    runs = {name: get_backend(RUNTIME).load(path, threads).run for name, path in files.items()}
    batches = list(ctx.recipe.export.benchmark_batches)
    if needs_timing(ctx.recipe.target) and ctx.recipe.target.batch not in batches:
        batches.append(ctx.recipe.target.batch)
    return time_in_turns(runs, batches, ctx.input_size)


def _score(session: Session, model: nn.Module, stages: Sequence[Stage], onnx: Path) -> dict[str, Any]:
    """The figures of the file itself, scored by its own runtime, and its agreement with the torch model."""
    ctx = session.ctx
    runtime = get_backend(RUNTIME).load(onnx, ctx.recipe.export.threads)
    figures, predictions = session.scorer.scored(ExportedModule(runtime.run), session.baseline)
    found: dict[str, Any] = dict(figures)
    if predictions is not None:
        last = session.folder.stage(len(stages), stages[-1].name)
        torch_predictions = np.load(last / PREDICTIONS, allow_pickle=False)
        found["agreement_torch"] = 100 * float((predictions == torch_predictions).mean())
    export = ctx.recipe.export
    checked = check_artifact(
        onnx,
        model,
        _images(ctx),
        agreement=found.get("agreement_torch"),
        min_agreement=export.min_agreement,
        max_abs_diff=export.max_abs_diff,
        threads=export.threads,
    )
    found |= checked.figures()
    ctx.log(
        "runtime",
        f"{found['integer_products']} products run on integers, {found['float_products']} in floating point; "
        f"agrees with torch on {found['agreement_torch']:.2f} %",
        **found,
    )
    return found


def _images(ctx: Context) -> Iterable[Batch]:
    """What the file and the torch model are compared on: validation images, else others, else noise."""
    size = ctx.recipe.data.batch_size
    if ctx.data is not None and ctx.data.has_val:
        return ctx.data.val(size)
    if ctx.data is not None and ctx.data.has_train:
        return ctx.data.calibration(64, size)
    return [Batch(torch.randn(16, *ctx.input_size, generator=torch.Generator().manual_seed(0)), None)]
