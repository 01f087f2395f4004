"""A recipe back to plain values, YAML text, and its hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

from act.recipe import text
from act.recipe.references import as_written, portable, without_locations
from act.recipe.schema import Recipe

_ATTRIBUTES = {"model": "model", "data": "data"}
_LATER = {"TrainConfig": "train", "target": "target", "export": "export"}
_UNHASHED = ("name", "description", "results")
_PATHS = {"train", "val", "calibration", "class_map", "checkpoint"}
# What has no part in the results that a recipe records: the number of processes, and what is timed.
_NO_RESULT = {"data": ("workers",), "export": ("benchmark", "benchmark_batches", "threads")}


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values in the YAML's shape, every default written out; `recipe_from_dict` reads it back."""
    return _as_dict(recipe, as_written)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML text that loads from any folder of this machine as the same recipe."""
    return text.dump(recipe_to_dict(recipe))


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 (hex) of everything that a run depends on: all but name, description and results.

    Of local paths only the last part counts, so that a recipe has the same hash on every machine; the content of
    data and checkpoints has fingerprints of its own.
    """
    canonical = json.dumps(hashed_settings(recipe), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def settings_hash(recipe: Recipe) -> str:
    """SHA-256 (hex) of the settings that results depend on: as `recipe_hash`, without locations, workers and timing."""
    settings = hashed_settings(without_locations(recipe))
    for section, names in _NO_RESULT.items():
        settings[section] = {key: value for key, value in settings[section].items() if key not in names}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def hashed_settings(recipe: Recipe) -> dict[str, Any]:
    """What `recipe_hash` is made of, as plain values."""
    return {key: value for key, value in _as_dict(recipe, portable).items() if key not in _UNHASHED}


def _as_dict(recipe: Recipe, path: Callable[[str], str]) -> dict[str, Any]:
    values: dict[str, Any] = {key: getattr(recipe, key) for key in ("name", "description", "schema", "seed")}
    values |= {key: getattr(recipe, attribute) for key, attribute in _ATTRIBUTES.items()}
    values |= recipe.strategies
    values |= {key: getattr(recipe, attribute) for key, attribute in _LATER.items()}
    values["results"] = recipe.results
    result: dict[str, Any] = _plain(values, path)
    return result


def _plain(value: Any, path: Callable[[str], str], name: str = "") -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(inner, path, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, path) for inner in value]
    if isinstance(value, str) and name in _PATHS:
        return path(value)
    return value
