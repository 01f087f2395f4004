"""A recipe as a stranger wrote it: what it may not say, beyond what no recipe may."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from act.errors import InputError
from act.recipe import text
from act.recipe.load import recipe_from_dict
from act.recipe.references import is_local, names_file
from act.recipe.schema import Recipe


def read_foreign(data: bytes, source: str) -> Recipe:
    """The recipe in `data`; InputError for everything wrong with it, and for paths of a machine."""
    document = text.parse(text.decode(data, source), source)
    paths = [
        f"{source}: {key}: {value}: a path of a machine; it may be given on the command line only"
        for key, value in local_paths(document.values)
    ]
    if paths:
        raise InputError(paths)
    return recipe_from_dict(document.values, source=source)


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
        elif names_file(key) and isinstance(value, str) and is_local(value):
            yield key, value
