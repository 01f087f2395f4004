"""Whether quantised attention products run on integers or in floating point in one runtime: measured, not assumed.

An attention in integers needs quantisers around both products and keeps the runtime from fusing it as a whole, so
which form is faster depends on runtime and machine.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from act.backends import get_backend
from act.export.onnx_graph import Graph
from act.run.timing import time_in_turns

if TYPE_CHECKING:
    from act.run.formats import Job

FORMS = ("int8", "float")
SECONDS = 4.0


def write_faster(job: Job, target: Path, backend: str, write: Callable[[Path, str], dict[str, int]]) -> dict[str, Any]:
    """Write `target` and the files beside it with `write(path, attention)`, in the form `export.attention` asks for.

    `auto` writes both forms where the main file has quantised attention products, times them in turns in `backend` at
    the target's batch, and keeps the faster. Returns what the report says of it: what was rewritten, `attention`, and
    `attention_ms` with the median of each form that was timed.
    """
    asked = job.ctx.recipe.export.attention
    quantized = any(attention.integer for attention in Graph(onnx.load(str(job.onnx))).attentions())
    if not quantized or asked != "auto":
        form = asked if quantized else "float"
        return {"rewritten": write(target, form), "attention": form}
    batch = job.ctx.recipe.target.batch
    with tempfile.TemporaryDirectory(prefix=".forms-", dir=target.parent) as name:
        paths = {form: Path(name) / form / target.name for form in FORMS}
        made = {}
        for form, path in paths.items():
            path.parent.mkdir()
            made[form] = write(path, form)
        runs = {f: get_backend(backend).load(p, job.ctx.recipe.export.threads).run for f, p in paths.items()}
        times = time_in_turns(runs, [batch], job.ctx.input_size, SECONDS)
        medians = {form: times[form][str(batch)]["median_ms"] for form in FORMS}
        best = min(FORMS, key=medians.__getitem__)
        for path in sorted(paths[best].parent.iterdir()):  # the weights before the file that names them
            os.replace(path, target.parent / path.name)
    shown = ", ".join(f"{form} {median:.2f} ms" for form, median in medians.items())
    job.ctx.log("export", f"{backend}: attention at batch {batch}: {shown}; {best} kept", form=best, times=medians)
    return {"rewritten": made[best], "attention": best, "attention_ms": medians}
