"""The artifact: written, opened in a real runtime, scored, compared with torch, timed, and sealed by a manifest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from act.analysis import analyze
from act.backends import get_backend
from act.context import Context
from act.data.batch import Batch
from act.data.preprocess import Preprocess
from act.errors import ExportError
from act.plan import Stage
from act.rebuild import save_model
from act.recipe.load import dump_recipe, recipe_hash
from act.recipe.references import without_local_paths
from act.run.atomic import sha256_file, write_json, write_text
from act.run.folder import RunFolder
from act.run.formats import FORMATS, MAIN, PACKED, Job, Written, in_order, open_file
from act.run.goals import needs_timing
from act.run.metrics import ExportedModule
from act.run.stages import PREDICTIONS, Session, check_promises
from act.run.timing import time_in_turns, unsteady
from act.verify.artifact import check_artifact, compare
from act.verify.folder import verify_folder, write_manifest

DELIVERED, REPORT = "delivered.json", "report.json"


def deliver(
    session: Session, model: nn.Module, stages: Sequence[Stage], preprocess: Preprocess
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write the model's files into `artifact/` and measure them.

    Returns the baseline's figures with its latencies added, and the report's entry of each format. ExportError
    when a file is not what the torch model is, ActError when a promise of a stage is broken.
    """
    ctx, folder = session.ctx, session.folder.artifact
    folder.mkdir(parents=True, exist_ok=True)
    check_promises(model, stages)
    _drop_other_formats(session.folder, ctx)
    save_model(folder, model, session.source, ctx.edits)
    job = Job(model, folder / "model.onnx", ctx, metadata(ctx, preprocess))
    files: dict[str, Path] = {}
    entries = []
    compressed = analyze(model, ctx.input_size)
    costs = {"params": compressed.params, "macs": compressed.macs, "bops": compressed.bops}
    for name in in_order(ctx.recipe.export.formats):
        ctx.log("export", f"exporting {name} to {folder}")
        written = FORMATS[name].write(job)
        files[name] = written.path
        scored = _score(session, model, stages, name, written.path)
        entries.append({"format": name} | costs | _listed(folder, written) | scored)
    baseline = dict(session.baseline.figures) | {"bops": analyze(session.original, ctx.input_size).bops}
    if ctx.recipe.export.benchmark or needs_timing(ctx.recipe.target):
        _time(session, files, baseline, entries)
    return baseline, entries


def _drop_other_formats(folder: RunFolder, ctx: Context) -> None:
    """Take away files of formats that an earlier recipe of the folder asked for: they hold another model."""
    for name in sorted(set(FORMATS) - {MAIN, *ctx.recipe.export.formats}):
        for file in sorted(folder.artifact.glob(f"model.{name}.*")):
            ctx.log("export", f"{file} removed: {name} is not in export.formats any more")
            file.unlink()


def seal(session: Session, results: dict[str, Any], preprocess: Preprocess) -> list[dict[str, Any]]:
    """Freeze the recipe beside the files, write the manifest, and verify the folder anew.

    The frozen recipe has its results and names no file of this machine. Returns the checks as report entries;
    ExportError when one of them fails.
    """
    folder, recipe = session.folder.artifact, session.ctx.recipe
    shared, _ = without_local_paths(recipe)
    write_text(folder / "recipe.yaml", dump_recipe(dataclasses.replace(shared, results=results)))
    write_json(folder / "preprocess.json", dataclasses.asdict(preprocess))
    write_manifest(folder, recipe_hash(recipe))
    checks = verify_folder(folder, session.own_base())
    broken = [f"{check.name}: {check.detail}" for check in checks if not check.holds]
    if broken:
        raise ExportError(f"{folder}: the files do not hold what they must: {'; '.join(broken)}")
    session.ctx.log("verified", f"verified: {', '.join(check.name for check in checks)}")
    return [dataclasses.asdict(check) for check in checks]


def mark_delivered(folder: RunFolder, key: str) -> None:
    """Remember that the artifact and the reports are complete for the inputs hashed in `key`."""
    write_json(folder.path / DELIVERED, {"key": key, **_delivered(folder)})


def _delivered(folder: RunFolder) -> dict[str, str]:
    """Hashes of the two files that stand for all others."""
    files = {"manifest": folder.artifact / "manifest.json", "report": folder.path / REPORT}
    return {name: sha256_file(path) for name, path in files.items()}


def delivered_before(folder: RunFolder, key: str) -> bool:
    """Whether report and artifact of `key` are complete, and the files still what the manifest says."""
    manifest = folder.artifact / "manifest.json"
    try:
        mark = json.loads((folder.path / DELIVERED).read_text(encoding="utf-8"))
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        same = all(sha256_file(folder.artifact / name) == entry["sha256"] for name, entry in files.items())
        return same and mark == {"key": key, **_delivered(folder)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


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


def _listed(folder: Path, written: Written) -> dict[str, Any]:
    """Path, size and hash of a format for the report; `files` lists each where there are several."""

    def one(path: Path) -> dict[str, Any]:
        name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
        return {"path": name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}

    found = one(written.path)
    if written.others:
        found["files"] = [one(path) for path in (written.path, *written.others)]
        found["bytes"] = sum(item["bytes"] for item in found["files"])
    return found | dict(written.notes)


def _time(
    session: Session, files: dict[str, Path], baseline: dict[str, Any], entries: Sequence[dict[str, Any]]
) -> None:
    """Time every file in turns with the original in the same backend; fills in latencies and speed-ups."""
    ctx = session.ctx
    timed = [entry for entry in entries if FORMATS[entry["format"]].timed]
    names = {entry["format"]: FORMATS[entry["format"]].backend for entry in timed}
    threads = ctx.recipe.export.threads
    runs = {
        f"original in {name}": get_backend(name).load(session.baseline.onnx, threads).run for name in names.values()
    }
    runs |= {name: get_backend(backend).load(files[name], threads).run for name, backend in names.items()}
    batches = list(ctx.recipe.export.benchmark_batches)
    if needs_timing(ctx.recipe.target) and ctx.recipe.target.batch not in batches:
        batches.append(ctx.recipe.target.batch)
    times = time_in_turns(runs, batches, ctx.input_size)
    baseline["latency"] = {name: times[f"original in {name}"] for name in names.values()}
    for entry in timed:
        backend = names[entry["format"]]
        before, after = baseline["latency"][backend], times[entry["format"]]
        entry["latency"], entry["speedup"] = {backend: after}, {backend: speedups(before, after)}
        for batch, factor in entry["speedup"][backend].items():
            median = after[batch]["median_ms"]
            ctx.log(
                "benchmark", f"{backend}, batch {batch}: {median:.2f} ms, {factor:.2f}x the speed of the original there"
            )
    if shaky := unsteady(times):
        ctx.log("warning", f"the machine was busy while timing ({'; '.join(shaky)}): do not rely on these")


def _score(session: Session, model: nn.Module, stages: Sequence[Stage], name: str, file: Path) -> dict[str, Any]:
    """The figures of the file itself, scored by its own runtime, and its agreement with the torch model."""
    ctx = session.ctx
    export = ctx.recipe.export
    backend = FORMATS[name].backend
    base = session.own_base() if name == PACKED else None
    runtime = open_file(name, file, export.threads, base)
    figures, predictions = session.scorer.scored(ExportedModule(runtime.run), session.baseline)
    found: dict[str, Any] = dict(figures)
    if predictions is not None:
        last = session.folder.stage(len(stages), stages[-1].name)
        torch_predictions = np.load(last / PREDICTIONS, allow_pickle=False)
        found["agreement_torch"] = 100 * float((predictions == torch_predictions).mean())
    limits: dict[str, Any] = {"min_agreement": export.min_agreement, "max_abs_diff": export.max_abs_diff}
    agreement = found.get("agreement_torch")
    if name == MAIN:
        checked = check_artifact(file, model, _images(ctx), agreement=agreement, threads=export.threads, **limits)
        found |= checked.figures()
        products = f"{found['integer_products']} products run on integers, {found['float_products']} in floating point"
    else:
        found |= compare(file, runtime, model, _images(ctx), agreement=agreement, **limits).figures()
        products = f"{name} in {backend}"
    ctx.log("runtime", f"{products}; agrees with torch on {found['agreement_torch']:.2f} %", **found)
    return found


def _images(ctx: Context) -> Iterable[Batch]:
    """What the file and the torch model are compared on: validation images, else others, else noise."""
    size = ctx.recipe.data.batch_size
    if ctx.data is not None and ctx.data.has_val:
        return ctx.data.val(size)
    if ctx.data is not None and ctx.data.has_train:
        return ctx.data.calibration(64, size)
    return [Batch(torch.randn(16, *ctx.input_size, generator=torch.Generator().manual_seed(0)), None)]
