"""Which form of a file is faster in one runtime: measured, not assumed.

An attention in integers needs quantisers around both products and keeps the runtime from fusing it as a whole; more
tokens are more work, and kernels may still be faster with them. Which wins depends on runtime, machine and batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from act.backends import get_backend
from act.export.onnx_graph import Graph
from act.run.atomic import PARTIAL, move
from act.run.timing import time_in_turns

if TYPE_CHECKING:
    from act.run.formats import Job

ATTENTIONS = ("int8", "float")
SECONDS = 2.0  # for each form


@dataclass(frozen=True)
class Form:
    """What quantised attention products run on, one of `ATTENTIONS`; whether zero tokens are appended."""

    attention: str
    padded: bool = False

    def __str__(self) -> str:
        return f"{self.attention}, padded" if self.padded else self.attention


def attention_forms(job: Job) -> list[str]:
    """The forms of attention that `export.attention` allows; float if the main file quantises no product of one."""
    asked = job.ctx.recipe.export.attention
    quantized = any(attention.integer for attention in Graph(onnx.load(str(job.onnx))).attentions())
    if not quantized:
        return ["float"]
    return list(ATTENTIONS) if asked == "auto" else [asked]


def padding_forms(job: Job, obstacle: str | None) -> list[bool]:
    """Whether tokens are appended, as `export.pad_tokens` allows; `obstacle`: why they cannot be, which is logged."""
    asked = job.ctx.recipe.export.pad_tokens
    if obstacle is not None and asked is not False:
        job.ctx.log("export", f"no tokens appended: {obstacle}")
    if obstacle is not None:
        return [False]
    return [False, True] if asked == "auto" else [asked]


def write_fastest(
    job: Job, target: Path, backend: str, forms: Sequence[Form], write: Callable[[Path, Form], dict[str, int]]
) -> dict[str, Any]:
    """Write `target` and the files beside it with `write(path, form)`, in the fastest of `forms`.

    Several are timed in turns in `backend` at the target's batch. Returns what the report says of it: what was
    `rewritten`, `attention`, and with several forms `form_ms`, the median of each.
    """
    if len(forms) == 1:
        return {"rewritten": write(target, forms[0]), "attention": forms[0].attention}
    batch = job.ctx.recipe.target.batch
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=target.parent) as name:
        paths = {form: Path(name) / str(number) / target.name for number, form in enumerate(forms)}
        made = {}
        for form, path in paths.items():
            path.parent.mkdir()
            made[form] = write(path, form)
        runs = {str(f): get_backend(backend).load(p, job.ctx.recipe.export.threads).run for f, p in paths.items()}
        times = time_in_turns(runs, [batch], job.ctx.input_size, SECONDS * len(forms))
        medians = {form: times[form][str(batch)]["median_ms"] for form in runs}
        best = min(forms, key=lambda form: medians[str(form)])
        for path in sorted(paths[best].parent.iterdir()):  # the weights before the file that names them
            move(path, target.parent / path.name)
    shown = "; ".join(f"{form} {median:.2f} ms" for form, median in medians.items())
    job.ctx.log("export", f"{backend}, batch {batch}: {shown}; kept: {best}", form=str(best), times=medians)
    return {"rewritten": made[best], "attention": best.attention, "form_ms": medians}
