"""Where recipes, config groups and embedded assets lie: inside the installed package, or at the repository's root."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from act.errors import InputError
from act.recipe.coerce import short
from act.recipe.pulled import find_pulled

_PACKAGE = Path(__file__).resolve().parent.parent
BUILTIN = "builtin:"


def configs_dir() -> Path:
    """The folder of config groups, one sub-folder per section."""
    return _shipped("configs")


def recipes_dir() -> Path:
    """The folder of complete recipes that come with the package."""
    return _shipped("recipes")


def assets_dir() -> Path:
    """The folder of embedded data and checkpoints."""
    return _PACKAGE / "assets"


def list_recipes() -> list[Path]:
    """The shipped recipes, by name."""
    return sorted(recipes_dir().glob("*.yaml"))


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe given by path, or by the bare name of a shipped or a pulled one.

    Raises:
        InputError: no such file, or a folder.
    """
    path = Path(name)
    if not str(name):
        raise InputError("RECIPE: empty; name a YAML file or a shipped recipe (see: vitcompress recipes ls)")
    if os.path.isdir(path) and str(name) not in {shipped.stem for shipped in list_recipes()}:
        raise InputError(f"{name}: a folder; a recipe is one YAML file")
    if os.path.isfile(path):
        return path
    if len(path.parts) == 1:
        for candidate in (recipes_dir() / path.name, recipes_dir() / f"{path.name}.yaml"):
            if os.path.isfile(candidate):
                return candidate
        pulled = find_pulled(path.name)
        if pulled is not None:
            return pulled.path
    shipped = [recipe.stem for recipe in list_recipes()]
    near = get_close_matches(path.stem, shipped, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise InputError(f"{short(str(name))}: no such recipe file{hint}; shipped recipes: {', '.join(shipped) or 'none'}")


def is_recipe(name: str) -> bool:
    """Whether `name` means a recipe (a YAML file, there or not, a shipped or a pulled one) rather than a model."""
    if name.endswith((".yaml", ".yml")) or name in {recipe.stem for recipe in list_recipes()}:
        return True
    import timm

    return not timm.is_model(name) and find_pulled(name) is not None


def asset(name: str) -> Path:
    """The path of `builtin:NAME` (the prefix may be left out); NAME may go on into a tar, as in `digits.tar/train`.

    Raises:
        InputError: no such asset, or a name that leaves the asset folder.
    """
    inner = Path(name.removeprefix(BUILTIN))
    if inner.is_absolute() or ".." in inner.parts or not inner.parts:
        raise InputError(f"{name}: not the name of an embedded asset; known: {', '.join(_asset_names())}")
    path = assets_dir() / inner
    if not exists(path):
        near = get_close_matches(inner.parts[0], _asset_names(), n=1)
        hint = f" (did you mean {BUILTIN}{near[0]}?)" if near else ""
        raise InputError(f"{short(name)}: no such embedded asset{hint}; known: {', '.join(_asset_names())}")
    return path


def exists(path: Path) -> bool:
    """Whether `path` is there, or lies inside a tar that is (which folders a tar holds is not looked at)."""
    # os.path takes names that the file system refuses, too long ones for instance, where pathlib raises.
    return os.path.exists(path) or any(parent.suffix == ".tar" and os.path.isfile(parent) for parent in path.parents)


def _asset_names() -> list[str]:
    return sorted(path.name for path in assets_dir().glob("*") if path.suffix in (".tar", ".safetensors"))


def _shipped(folder: str) -> Path:
    inside = _PACKAGE / folder
    return inside if inside.is_dir() else _PACKAGE.parent / folder
