"""Files for runtimes from a folder that holds no more than a packed file and its arch.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from act.context import Context
from act.data.batch import Batch
from act.errors import InputError
from act.rebuild import load_packed_model, read_arch
from act.recipe.load import recipe_from_dict
from act.run.formats import FORMATS, MAIN, PACKED, Job, format_problems, in_order, open_file
from act.storage.file import PACKED_FILE, read_packed
from act.verify.artifact import Comparison, check_artifact, compare

IMAGES = 16


@dataclass(frozen=True)
class Exported:
    """A file that was written: its format, its size, and how it agrees with torch on images of noise (percent)."""

    format: str
    path: Path
    bytes: int
    agreement: float
    max_abs_diff: float


def export_packed(folder: Path, formats: Sequence[str], overrides: Sequence[str] = ()) -> list[Exported]:
    """Rebuild the model from the packed file in `folder`, write `formats` beside it, open each and compare it.

    The main ONNX file is always written, since the others are made from it. `overrides` are `export.*` and `target.*`
    words. InputError for a file or a word that cannot be used, ExportError if a file is not what the torch model is, or
    none of its products runs on integers though layers are quantised.
    """
    packed = read_packed(folder / PACKED_FILE)
    arch = read_arch(folder)
    if arch["base"] is None:
        raise InputError(f"{folder}: its model came as a module, which cannot be built by its name")
    wanted: dict[str, Any] = {"name": packed.metadata.get("recipe", "packed"), "model": {"name": arch["base"]["name"]}}
    recipe = recipe_from_dict(wanted, overrides)
    names = in_order([MAIN, *formats])
    problems = format_problems(names) + ([f"--to: {PACKED}: is what {folder} holds already"] if PACKED in names else [])
    if problems:
        raise InputError(problems)
    ctx = Context(recipe, packed.input_size(), edits=arch["edits"])
    model = load_packed_model(packed)
    job = Job(model, folder / "model.onnx", ctx, packed.metadata)
    noise = Batch(torch.randn(IMAGES, *ctx.input_size, generator=torch.Generator().manual_seed(0)), None)
    written = []
    for name in names:
        path = FORMATS[name].write(job).path
        threads = recipe.export.threads
        limits: dict[str, Any] = {
            "min_agreement": recipe.export.min_agreement,
            "max_abs_diff": recipe.export.max_abs_diff,
        }
        if name == MAIN:  # whose products are counted as well
            found: Comparison = check_artifact(path, model, [noise], threads=threads, **limits)
        else:
            found = compare(path, open_file(name, path, threads), model, [noise], **limits)
        written.append(Exported(name, path, path.stat().st_size, found.agreement, found.max_abs_diff))
    return written
