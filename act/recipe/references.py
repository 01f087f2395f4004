"""Files that a recipe points at: found at load time, so that a missing one is an error before anything is built."""

from __future__ import annotations

import copy
import dataclasses
import glob
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from act.errors import InputError
from act.recipe.coerce import Problems, short
from act.recipe.paths import BUILTIN, asset, assets_dir, exists
from act.recipe.schema import DataConfig, ModelConfig, Recipe

_DATA_PATHS = ("train", "val", "calibration", "class_map")
_HUB_DATA, _SHARDS = "hfds/", "wds/"
_HUB_NAME = re.compile(r"hfds/\w[\w.-]*(?:/\w[\w.-]*)?(?:@[^/]*)?", re.ASCII)


def resolve_references(recipe: Recipe, folder: Path, problems: Problems) -> None:
    """Make every path of the recipe absolute, in place; a missing one is reported.

    A relative path is looked up beside the recipe first, then in the current folder. `builtin:` data stay as they
    are (the data reader knows them), a `builtin:` checkpoint becomes its path.
    """
    for name in _DATA_PATHS:
        value = getattr(recipe.data, name)
        if value is not None:
            setattr(recipe.data, name, _data(value, f"data.{name}", folder, problems))
    if recipe.data.class_map is not None and os.path.isdir(recipe.data.class_map):
        problems.add("data.class_map", f"{recipe.data.class_map}: a folder; allowed: a text file, one class per line")
    for key, model in model_configs(recipe):
        if model.checkpoint is not None:
            model.checkpoint = _checkpoint(model.checkpoint, f"{key}.checkpoint", folder, problems)


def model_configs(recipe: Recipe) -> Iterator[tuple[str, ModelConfig]]:
    """(dotted key, config) of every model the recipe names: its own, and teachers inside strategies."""
    yield "model", recipe.model
    for name, config in recipe.strategies.items():
        yield from _nested_models(config, name)


def without_local_paths(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """A copy that names no file of this machine, and a line for each path that was left out.

    Embedded assets and data sets of the Hub stay.
    """
    found, lines = copy.deepcopy(recipe), []
    for name, value in data_paths(found.data).items():
        if is_local(value):
            setattr(found.data, name, None)
            lines.append(f"data.{name}: {value} left out; whoever runs it gives data.{name}=PATH")
    for key, model in model_configs(found):
        if model.checkpoint is not None and is_local(as_written(model.checkpoint)):
            lines.append(f"{key}.checkpoint: {model.checkpoint} left out; whoever runs it gives {key}.checkpoint=FILE")
            model.checkpoint = None
    return found, lines


def without_locations(recipe: Recipe) -> Recipe:
    """A copy that does not say where data and checkpoints lie."""
    found = copy.deepcopy(recipe)
    for name in _DATA_PATHS:
        setattr(found.data, name, None)
    for _, model in model_configs(found):
        model.checkpoint = None
    return found


def local_paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, path) of every file or folder that a recipe's values name, embedded and Hub data left out."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from local_paths(value, f"{key}.")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, Mapping):
                    yield from local_paths(item, f"{key}[{index}].")
        elif _names_file(key) and isinstance(value, str) and is_local(value):
            yield key, value


def _names_file(key: str) -> bool:
    """Whether the dotted key of a recipe holds a location."""
    section, _, name = key.rpartition(".")
    return name == "checkpoint" or (section == "data" and name in _DATA_PATHS)


def is_local(location: str) -> bool:
    """Whether `location` is a file or folder of a machine; embedded assets and data sets of the Hub are not.

    A data set is NAME or OWNER/NAME. The library that reads it takes paths as well, and those are local.
    """
    return not (location.startswith(BUILTIN) or _HUB_NAME.fullmatch(location))


def portable(location: str) -> str:
    """`location` as it may be shown to others: an embedded asset by its name, a local path by its last part."""
    for prefix in (_HUB_DATA, _SHARDS):
        if location.startswith(f"{prefix}/"):  # an absolute path behind it
            return prefix + portable(location.removeprefix(prefix))
    path = Path(location)
    if path.is_absolute():
        return _as_builtin(path) or path.name
    return location


def as_written(location: str) -> str:
    """`location` as a recipe writes it: an embedded asset by its name, anything else unchanged."""
    path = Path(location)
    return (_as_builtin(path) if path.is_absolute() else None) or location


def _as_builtin(path: Path) -> str | None:
    return BUILTIN + path.relative_to(assets_dir()).as_posix() if path.is_relative_to(assets_dir()) else None


def _data(value: str, key: str, folder: Path, problems: Problems) -> str:
    if value.startswith(_HUB_DATA):
        return value
    if value.startswith(_SHARDS):
        beside = os.path.join(folder.resolve(), os.path.expanduser(value.removeprefix(_SHARDS)))
        return f"{_SHARDS}{beside}" if os.path.exists(beside) or glob.glob(beside) else value
    if value.startswith(BUILTIN):
        _asset(value, key, problems)
        return value
    return _found(value, key, folder, problems)


def _checkpoint(value: str, key: str, folder: Path, problems: Problems) -> str:
    if value.startswith(BUILTIN):
        return _asset(value, key, problems)
    path = _found(value, key, folder, problems)
    if os.path.isdir(path):
        problems.add(key, f"{value}: a folder; allowed: a .safetensors file, or a torch file")
    return path


def _asset(value: str, key: str, problems: Problems) -> str:
    try:
        return str(asset(value))
    except InputError as error:
        problems.add(key, str(error))
        return value


def _found(value: str, key: str, folder: Path, problems: Problems) -> str:
    try:
        path = Path(value).expanduser()
        candidates = dict.fromkeys(((folder / path).resolve(), path.resolve()))
        for candidate in candidates:
            if value.strip() and exists(candidate):
                return str(candidate)
    except (OSError, RuntimeError, ValueError):  # names the file system refuses: too long, unknown ~user, NUL
        problems.add(key, f"{value[:60]!r} cannot be a path")
        return value
    looked = short(" or ".join(str(candidate.parent) for candidate in candidates), 400)
    problems.add(
        key, f"{short(value)}: no such file or folder (looked in {looked}); relative paths start at the recipe"
    )
    return value


def _nested_models(value: Any, key: str) -> Iterator[tuple[str, ModelConfig]]:
    if isinstance(value, ModelConfig):
        yield key, value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _nested_models(getattr(value, field.name), f"{key}.{field.name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _nested_models(item, f"{key}[{index}]")


def data_paths(data: DataConfig) -> dict[str, str]:
    """The locations a data section names, by field."""
    return {name: getattr(data, name) for name in _DATA_PATHS if getattr(data, name) is not None}
