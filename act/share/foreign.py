"""A recipe as a stranger wrote it: what it may not say, beyond what no recipe may."""

from __future__ import annotations

from pathlib import Path

from act.errors import InputError
from act.recipe import text
from act.recipe.load import read_document
from act.recipe.references import local_paths
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
    return read_document(document, source, Path.cwd()).recipe
