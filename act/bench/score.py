"""Accuracy of what is timed, on the validation images of a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from act.bench.sources import BASELINE
from act.bench.variants import FLOAT, Opened
from act.run.evaluate import Predictions, evaluate
from act.run.metrics import ExportedModule

if TYPE_CHECKING:
    from act.data.batch import Batch


def score(opened: Opened, batches: Iterable[Batch]) -> None:
    """Score every variant on `batches` (streamed anew for each) and put the figures into its source.

    `agreement` is with the original in float32 in the first backend; without an original there is none. A variant
    that cannot run the batches, as one with a fixed batch size, is added to `opened.skipped`.
    """
    originals = [item for item in opened.variants if item.source.role == BASELINE and item.precision == FLOAT]
    reference: Predictions | None = None
    for variant in [*originals[:1], *(item for item in opened.variants if item not in originals[:1])]:
        try:
            found = evaluate(ExportedModule(variant.run), batches, reference)
        except RuntimeError as error:
            text = " ".join(str(error).split())[:200]
            opened.skipped.append((f"score of {variant.name}", f"cannot run the batches: {text}"))
            continue
        if variant in originals[:1]:
            reference = found["predictions"]
            found["agreement"] = 100.0
        known: dict[str, float] = {
            name: round(float(found[name]), 4) for name in ("top1", "agreement") if name in found
        }
        variant.source.figures[variant.runtime] = known
