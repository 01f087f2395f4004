"""Latencies of many variants from one process: rounds in which each runs once, in rotating order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from act.bench.sources import BASELINE
from act.bench.variants import FLOAT, Opened, Variant
from act.errors import InputError
from act.run.timing import noise, time_rounds, unsteady


@dataclass
class Row:
    """One variant at one batch size.

    Latencies in milliseconds per batch. Speed-ups are ratios of medians: `vs_fp32` and `vs_half` to the original in
    the same backend, `vs_reference` to the FP32 original in the first backend. None: nothing to compare with.
    """

    variant: Variant
    batch: int
    median_ms: float
    p90_ms: float
    vs_fp32: float | None = None
    vs_half: float | None = None
    vs_reference: float | None = None

    @property
    def images_per_second(self) -> float:
        """Throughput at the median."""
        return 1000 * self.batch / self.median_ms

    def as_json(self) -> dict[str, Any]:
        """The row as plain values."""
        variant = self.variant
        return {
            "name": variant.source.name,
            "role": variant.source.role,
            "backend": variant.backend,
            "precision": variant.precision,
            "batch": self.batch,
            "median_ms": round(self.median_ms, 4),
            "p90_ms": round(self.p90_ms, 4),
            "images_per_second": round(self.images_per_second, 2),
            "speedup_vs_fp32": self.vs_fp32,
            "speedup_vs_half": self.vs_half,
            "speedup_vs_reference": self.vs_reference,
            "bytes": variant.source.bytes,
            **variant.figures,
        }


def measure(opened: Opened, batches: Sequence[int], size: tuple[int, int, int], repeats: int) -> list[Row]:
    """Time all variants at every batch size; a variant that cannot run a size is added to `opened.skipped`.

    Raises:
        InputError: no variant runs at a batch size.
    """
    rows = []
    for batch in batches:
        images = noise(batch, size)
        able = [variant for variant in opened.variants if _runs(variant, images, opened)]
        if not able:
            raise InputError(f"--batch: {batch}: none of the files runs it")
        taken = time_rounds({variant.name: variant.run for variant in able}, images, repeats)
        found = []
        for variant in able:
            median, p90 = np.percentile(taken[variant.name], [50, 90])
            found.append(Row(variant, batch, float(median), float(p90)))
        compare(found)
        rows += found
    return rows


def compare(rows: Sequence[Row]) -> None:
    """Fill in the speed-ups of the rows of one batch size."""
    originals = [row for row in rows if row.variant.source.role == BASELINE]
    fp32 = {row.variant.backend: row.median_ms for row in originals if row.variant.precision == FLOAT}
    half = {row.variant.backend: row.median_ms for row in originals if row.variant.precision != FLOAT}
    reference = next(iter(fp32.values()), None)
    for row in rows:
        backend = row.variant.backend
        row.vs_fp32 = _ratio(fp32.get(backend), row.median_ms)
        row.vs_half = _ratio(half.get(backend), row.median_ms)
        row.vs_reference = _ratio(reference, row.median_ms)


def shaky(rows: Sequence[Row]) -> list[str]:
    """The timings that varied too much to be relied on."""
    return [
        text
        for row in rows
        for text in unsteady({row.variant.name: {str(row.batch): {"median_ms": row.median_ms, "p90_ms": row.p90_ms}}})
    ]


def _runs(variant: Variant, images: Any, opened: Opened) -> bool:
    try:
        variant.run(images)
    except Exception as error:  # each runtime has its own types; a fixed batch size is the usual reason
        text = " ".join(str(error).split())[:200] or type(error).__name__
        opened.skipped.append((f"{variant.name}, batch {len(images)}", f"cannot run it: {text}"))
        return False
    return True


def _ratio(before: float | None, after: float) -> float | None:
    return None if before is None else round(before / after, 4)
