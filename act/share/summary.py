"""What a recipe will do, in a few lines for whoever is about to run it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from act.recipe.coerce import shown
from act.recipe.pulled import Lock
from act.recipe.references import as_written, model_configs
from act.recipe.schema import ModelConfig, Recipe
from act.strategies.base import Phase, load_strategies

_DATA = ("train", "val", "calibration", "class_map")


def summary(recipe: Recipe, lock: Lock | None = None) -> list[tuple[str, str]]:
    """(what, in words): source, model, strategies, data, files, trackers and recorded results."""
    lines = [] if lock is None else [("source", lock.source), ("sha256", lock.sha256), ("pulled", lock.pulled)]
    if lock is not None and lock.revision is not None:
        lines.insert(1, ("revision", lock.revision))
    if recipe.description:
        lines.append(("description", " ".join(recipe.description.split())))
    lines += [(key, _model(model)) for key, model in model_configs(recipe)]
    lines += _strategies(recipe)
    lines += _data(recipe)
    lines.append(("writes", ", ".join(recipe.export.formats)))
    if recipe.train.trackers:
        lines.append(("reports to", f"{', '.join(recipe.train.trackers)} (trackers; they may send figures elsewhere)"))
    return lines + list(_results(recipe.results))


def headline(results: Mapping[str, Any]) -> str:
    """What the first file of recorded `results` lost and saved; nothing if they do not say so."""
    original, [file, *_] = results.get("baseline"), results.get("artifacts") or [{}]
    if not isinstance(original, Mapping):  # a figure of one's own may have this name
        return ""
    words = [f"top1 {original['top1']:.2f} -> {file['top1']:.2f}"] if "top1" in original and "top1" in file else []
    if original.get("bytes") and file.get("bytes"):
        words.append(f"{original['bytes'] / file['bytes']:.1f}x smaller")
    return ", ".join(words)


def _model(model: ModelConfig) -> str:
    name = model.name or "none named"
    if model.checkpoint is not None:
        return f"{name}, weights from {as_written(model.checkpoint)}"
    return f"{name}, timm's weights (downloaded if they are not here)" if model.pretrained else f"{name}, no weights"


def _strategies(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """In the order of their stages, each with the settings that are not its defaults."""
    registry = load_strategies()
    if not recipe.strategies:
        yield "strategies", "none named; they are chosen from the model and the target"
    phases = list(Phase)
    for name in sorted(recipe.strategies, key=lambda name: phases.index(registry[name].phase)):
        config, default = recipe.strategies[name], registry[name].Config()
        changed = [
            f"{field.name} {shown(getattr(config, field.name))}"
            for field in dataclasses.fields(config)
            if getattr(config, field.name) != getattr(default, field.name) and field.name != "teacher"
        ]
        yield name, ", ".join(changed) or "as by default"


def _data(recipe: Recipe) -> Iterator[tuple[str, str]]:
    recorded = recipe.results.get("data", {})
    for role in _DATA:
        location = getattr(recipe.data, role)
        images = recorded.get(role, {}).get("images") if isinstance(recorded, Mapping) else None
        if location is not None:
            where = " (downloaded from the Hub)" if location.startswith("hfds/") else ""
            yield f"data.{role}", f"{location}{where}"
        elif images is not None:
            yield f"data.{role}", f"to be given: data.{role}=PATH ({images} images when it was measured)"
        elif role == "train":
            yield "data.train", "to be given: data.train=PATH"


def _results(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows of figures; hashes and versions are for `reproduce`."""
    rows = {name: value for name, value in results.items() if isinstance(value, Mapping)}
    hidden = ("environment", "model", "data", "searched")
    named = {name: value for name, value in rows.items() if name not in hidden}
    for row in [*results.get("stages", []), *results.get("artifacts", [])]:
        named[row.get("name") or row["format"]] = row
    for name, row in named.items():
        figures = [f"{key} {value:g}" if value < 1000 else f"{key} {value:,.0f}" for key, value in _numbers(row)]
        yield f"recorded: {name}", ", ".join(figures)
    where = results.get("machine") or results.get("environment", {}).get("cpu")
    if where:
        yield "recorded on", str(where)
    if not named:
        yield "recorded", "no results"


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in row.items():
        if isinstance(value, int | float):
            yield key, value
        elif key == "speedup":
            yield from ((f"speedup_batch_{b}", factor) for by in value.values() for b, factor in by.items())
