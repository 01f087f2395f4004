"""report.json (schema 1) and report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from act.errors import InputError
from act.recipe.dump import settings_hash
from act.recipe.load import dump_recipe, recipe_hash
from act.recipe.references import data_paths, portable, without_local_paths
from act.run.atomic import write_json, write_text
from act.run.environment import describe, machine_fingerprint
from act.run.folder import RunFolder
from act.run.goals import Goal, judged, status_of
from act.run.log import read_events
from act.run.page import render
from act.run.reading import read_json

if TYPE_CHECKING:
    from act.data.bundle import DataBundle
    from act.recipe.schema import Recipe

SCHEMA = 1
_VERSIONS = ("torch", "timm", "onnx", "onnxruntime", "openvino")  # that decide figures
INTERNAL = ("order", "images")  # figures that serve the run itself


def build_report(
    recipe: Recipe,
    weights: str,
    data: DataBundle | None,
    baseline: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    artifacts: Sequence[Mapping[str, Any]],
    goals: list[Goal],
    metric: str,
    skipped: Sequence[str] = (),
) -> dict[str, Any]:
    """The report as plain JSON; no path, user or host of this machine is in it.

    `weights` is the hash of the original model's tensors, `settings_hash` that of the recipe without locations.
    `agreement` is always with the original's predictions, `agreement_torch` of a file that with the torch model it
    was exported from; both, and `top1`, in percent. Latencies are milliseconds per batch. `metric` names the figure
    that goals go by, `judged` the file and the batch size. `checks` is what verifying the artifact folder found, empty
    until that was done; `skipped` names images that could not be read. `layers` is added by
    `act.run.per_layer.layer_figures`.
    """
    chosen = judged(recipe.target, artifacts)
    return {
        "schema": SCHEMA,
        "name": recipe.name,
        "status": status_of(goals),
        "goals": [asdict(goal) for goal in goals],
        "recipe_hash": recipe_hash(recipe),
        "settings_hash": settings_hash(recipe),
        "model": {"name": recipe.model.name or "module", "weights": weights},
        "metric": metric,
        "judged": {"format": chosen["format"], "batch": recipe.target.batch},
        "environment": describe(),
        "data": {
            "fingerprint": data.fingerprint() if data is not None else None,
            "train_images": data.train_images if data is not None else 0,
            "val_images": data.val_images if data is not None else 0,
            "roles": data.described() if data is not None else {},
            "skipped": _portable_names(recipe, skipped),
        },
        "baseline": {key: value for key, value in baseline.items() if key not in INTERNAL},
        "stages": [dict(stage) for stage in stages],
        "artifacts": [dict(artifact) for artifact in artifacts],
        "checks": [],
    }


def _portable_names(recipe: Recipe, skipped: Sequence[str]) -> list[str]:
    """Images named `LOCATION: NAME`, with what may be shown of the location."""
    found = list(skipped)
    for location in data_paths(recipe.data).values():
        start = f"{location}: "
        found = [
            name.replace(start, f"{portable(location)}: ", 1) if name.startswith(start) else name for name in found
        ]
    return found


def write_report(folder: RunFolder, recipe: Recipe, report: dict[str, Any]) -> None:
    """Write both files; the JSON last, since it is what says that the run is complete."""
    shown = dump_recipe(without_local_paths(recipe)[0])
    write_text(folder.path / "report.html", render(report, shown, read_events(folder.events)))
    write_json(folder.path / "report.json", report)


def read_report(folder: RunFolder) -> dict[str, Any] | None:
    """The folder's report, None when there is none that can be read."""
    try:
        found = read_json(folder.path / "report.json")
    except InputError:
        return None
    return found if isinstance(found, dict) and found.get("schema") == SCHEMA else None


def measured(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe keeps of its report: figures of the original and of each file, and what they were measured with."""

    def some(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
        return {key: values[key] for key in keys if key in values}

    environment = report["environment"]
    versions = {name: environment["packages"][name] for name in _VERSIONS if name in environment["packages"]}
    return {
        "status": report["status"],
        "settings": report["settings_hash"],
        "model": some(report["model"], "weights"),
        "data": report["data"]["roles"],
        "baseline": some(report["baseline"], "top1", "params", "macs", "bytes"),
        "stages": [some(stage, "name", "top1", "agreement", "seconds") for stage in report["stages"]],
        "artifacts": [
            some(item, "format", "top1", "agreement", "agreement_torch", "params", "macs", "bytes", "sha256")
            | some(item, "latency", "speedup")
            for item in report["artifacts"]
        ],
        "environment": some(environment, "vitcompress", "cpu")
        | {"machine": machine_fingerprint(environment), "packages": versions},
    }
