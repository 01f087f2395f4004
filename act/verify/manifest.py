"""manifest.json: size and SHA-256 of every file of an artifact folder."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

from act.errors import InputError
from act.run.atomic import sha256_file, write_json
from act.run.reading import read_json

SCHEMA = 1
MANIFEST_FILE = "manifest.json"


def write_manifest(folder: str | Path, recipe_hash: str | None = None) -> dict[str, dict[str, Any]]:
    """Write manifest.json over every file under `folder`.

    Returns its `files`: by path relative to `folder`, `sha256` and `bytes`.
    """
    path = Path(folder)
    files = {name: {"sha256": sha256_file(path / name), "bytes": (path / name).stat().st_size} for name in _files(path)}
    write_json(path / MANIFEST_FILE, {"schema": SCHEMA, "recipe_hash": recipe_hash, "files": files})
    return files


def check_manifest(folder: str | Path) -> list[str]:
    """What differs between `folder` and its manifest.json, one line each; empty when nothing does."""
    path = Path(folder)
    listed = _read(path / MANIFEST_FILE)["files"]
    present = _files(path)
    problems = [f"{name}: not in {MANIFEST_FILE}" for name in present if name not in listed]
    for name, entry in listed.items():
        if not _inside(path, name):
            problems.append(f"{name}: leads out of the folder")
        elif name not in present:
            problems.append(f"{name}: missing")
        elif {"sha256": sha256_file(path / name), "bytes": (path / name).stat().st_size} != entry:
            problems.append(f"{name}: its content has changed")
    return problems


def recipe_of(folder: str | Path) -> str | None:
    """The hash of the recipe that the manifest of `folder` names; None where it names none."""
    found: str | None = _read(Path(folder) / MANIFEST_FILE)["recipe_hash"]
    return found


def _read(path: Path) -> dict[str, Any]:
    """`schema`, `recipe_hash` and `files`: by relative path, `sha256` and `bytes`."""
    try:
        manifest: dict[str, Any] = read_json(path)
        known = set(manifest) == {"schema", "recipe_hash", "files"} and isinstance(manifest["files"], dict)
    except TypeError:
        known = False
    if not known or manifest["schema"] != SCHEMA:
        raise InputError(f"{path}: not a manifest of schema {SCHEMA}")
    return manifest


def _files(folder: Path) -> list[str]:
    """Relative POSIX paths of all files under `folder` but its manifest, sorted; links to folders are not followed."""
    found = []
    for root, _, names in os.walk(folder):
        found += [(Path(root) / name).relative_to(folder).as_posix() for name in names]
    return sorted(name for name in found if name != MANIFEST_FILE)


def _inside(folder: Path, name: str) -> bool:
    """Whether `name` is a plain relative path to something that really lies in `folder`."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        return False
    return (folder / name).resolve().is_relative_to(folder.resolve())
