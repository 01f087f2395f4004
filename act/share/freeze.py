"""A finished run as a recipe that carries its results and can be given away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from act.errors import InputError
from act.recipe.check import NAME
from act.recipe.dump import dump_recipe
from act.recipe.load import load_recipe
from act.run.folder import RunFolder
from act.run.report import measured, read_report

_HOLDS = {"settings_hash", "status", "model", "data", "environment", "baseline", "stages", "artifacts"}


def freeze(run: Path, name: str) -> tuple[str, list[str]]:
    """The recipe of a finished run as YAML text, and a line for each thing that its user has to bring.

    Every default is written out; `results` are those of report.json, with the hashes of model and images. `name`
    becomes the recipe's. InputError if it cannot be, or `run` is no finished run of this version.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"{name}: cannot name a recipe; allowed: letters, digits, '.', '_', '-', up to 100")
    report = read_report(RunFolder(run))
    source = run / "artifact" / "recipe.yaml"
    if report is None or not source.is_file():
        raise InputError(f"{run}: no finished run: it has no report.json and artifact/recipe.yaml; finish the run")
    if lacking := sorted(_HOLDS - set(report)):
        raise InputError(f"{run}: its report.json lacks {', '.join(lacking)}; run it again with this version")
    recipe = load_recipe(source)
    recipe.name = name
    missing = _missing(recipe.data, recipe.model, report)
    words = " ".join(["vitcompress", "reproduce", f"{name}.yaml", *(f"{key}=PATH" for key in missing)])
    recipe.results = {"command": words} | measured(report)
    lines = [f"{key}: not in the recipe, {what}; whoever runs it gives {key}=PATH" for key, what in missing.items()]
    return dump_recipe(recipe), lines


def _missing(data: Any, model: Any, report: dict[str, Any]) -> dict[str, str]:
    """What the run read and the recipe does not name, in words."""
    roles = report["data"]["roles"].items()
    found = {f"data.{role}": f"{item['images']} images" for role, item in roles if getattr(data, role) is None}
    if model.name is None:
        raise InputError("model: came as a module from Python, which no recipe can name; save it under a timm name")
    if model.checkpoint is None and not model.pretrained:
        found["model.checkpoint"] = "weights of one's own"
    return found
