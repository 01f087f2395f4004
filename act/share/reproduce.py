"""Whether a recipe's recorded results hold: what they were measured with, and each figure within its tolerance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from act.data.bundle import DataBundle
from act.data.preprocess import resolve_preprocess
from act.errors import InputError
from act.models import load_model
from act.recipe.dump import settings_hash
from act.recipe.schema import Recipe
from act.run.environment import describe, machine_fingerprint
from act.run.keys import weights_hash

HOLDS, FAILS, SKIPPED = "holds", "FAILS", "not compared"
# Points for percentages, shares of the recorded value for the rest. A speed-up may be larger than recorded.
TOLERANCES = {"top1": 0.5, "agreement": 1.0, "bytes": 0.01, "params": 0.0, "macs": 0.0, "bops": 0.0, "speedup": 0.2}
_POINTS = ("top1", "agreement")
_SPEEDUP = "speedup_batch_"
_ROWS = ("searched", "environment", "data", "model", "latency", "speedup")


@dataclass(frozen=True)
class Line:
    """One thing that a recipe records, what was found, and the verdict on it."""

    what: str
    recorded: str
    found: str
    verdict: str
    reason: str = ""


def check_inputs(recipe: Recipe) -> list[Line]:
    """Compare settings, weights of the model, images and versions with those that `recipe.results` records.

    InputError if it records no results, or the model or images cannot be read.
    """
    results = recipe.results
    if not list(_figures(results)):
        raise InputError(f"{recipe.name}: records no results; fill them in with: vitcompress recipes freeze RUN")
    model = load_model(recipe.model)
    lines = [_same("settings", results.get("settings"), settings_hash(recipe))]
    lines.append(_same("model weights", results.get("model", {}).get("weights"), weights_hash(model)))
    data = DataBundle(recipe.data, resolve_preprocess(model, recipe.data), recipe.seed)
    return [*lines, *_images(results.get("data"), data), *_versions(results.get("environment", {}))]


def check_figures(results: Mapping[str, Any], report: Mapping[str, Any], tolerances: Mapping[str, float]) -> list[Line]:
    """A line for each figure that `results` record, compared with the `report` of a run on this machine."""
    found = dict(_figures(report))
    recorded = results.get("environment", {}).get("machine")
    here = machine_fingerprint(report["environment"])
    lines = []
    for (row, figure), value in _figures(results):
        what = f"{row} {figure}" if row else figure
        kind = "speedup" if figure.startswith(_SPEEDUP) else figure
        new = found.get((row, figure))
        if new is None:
            lines.append(Line(what, _shown(value), "", SKIPPED, "the run has no such stage, file or figure"))
        elif kind == "speedup" and recorded != here:
            why = "another machine" if recorded else "the recipe does not say on which machine"
            lines.append(Line(what, _shown(value), _shown(new), SKIPPED, why))
        else:
            lines.append(_judged(what, kind, value, new, tolerances[kind]))
    if "status" in results:
        lines.append(_same("status", results["status"], report["status"]))
    return lines


def parse_tolerances(words: list[str]) -> dict[str, float]:
    """`TOLERANCES` with the changes of `figure=number` words; InputError for others."""
    found = dict(TOLERANCES)
    for word in words:
        name, _, text = word.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if name not in found or not 0 <= value < float("inf"):
            raise InputError(f"--tolerance: {word}; allowed: NAME=NUMBER, 0 or more, of {', '.join(TOLERANCES)}")
        found[name] = value
    return found


def _judged(what: str, kind: str, old: float, new: float, tolerance: float) -> Line:
    if kind in _POINTS:
        holds, allowed = abs(new - old) <= tolerance + 1e-9, f"{tolerance:g} points"
    else:
        holds, allowed = abs(new - old) <= tolerance * abs(old) + 1e-9, f"{100 * tolerance:g} %"
        if kind == "speedup":
            holds, allowed = new >= (1 - tolerance) * old, f"{100 * tolerance:g} % slower"
    return Line(what, _shown(old), _shown(new), HOLDS if holds else FAILS, f"allowed: {allowed}")


def _same(what: str, recorded: str | None, found: str) -> Line:
    if recorded is None:
        return Line(what, "", found[:12], SKIPPED, "not recorded")
    same = recorded == found
    reason = "" if same else "not what the results were measured with"
    return Line(what, recorded[:12], found[:12], HOLDS if same else FAILS, reason)


def _images(recorded: Mapping[str, Any] | None, data: DataBundle) -> Iterator[Line]:
    if recorded is None:
        yield Line("images", "", "", SKIPPED, "not recorded")
        return
    found = data.described()
    for role, item in recorded.items():
        mine = found.get(role)
        if mine is None:
            raise InputError(
                f"data.{role}: not given; the results were measured with {item.get('images')} images there"
            )
        yield _same(f"data.{role}", item["fingerprint"], mine["fingerprint"])


def _versions(recorded: Mapping[str, Any]) -> Iterator[Line]:
    """Versions and machine decide no verdict; where they differ, that is said."""
    here = describe()
    versions = {"vitcompress": recorded.get("vitcompress")} | dict(recorded.get("packages", {}))
    mine = {"vitcompress": here["vitcompress"]} | here["packages"]
    for name, old in versions.items():
        if old is not None and old != mine.get(name):
            yield Line(name, old, mine.get(name) or "not installed", SKIPPED, "another version")
    if "machine" in recorded and recorded["machine"] != machine_fingerprint(here):
        yield Line("machine", str(recorded.get("cpu", "")), here["cpu"], SKIPPED, "speed-ups are not comparable")


def _figures(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], float]]:
    """((row, figure), number) of results or of a report: rows are `baseline`, stages and formats by their names."""
    for name, value in values.items():
        if name in ("stages", "artifacts"):
            for row in value:
                yield from _row(row.get("name") or row["format"], row)
        elif isinstance(value, Mapping) and name not in _ROWS:
            yield from _row(name, value)
        elif name in TOLERANCES:
            yield ("", name), float(value)


def _row(name: str, row: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], float]]:
    for figure, value in row.items():
        if figure in TOLERANCES or figure.startswith(_SPEEDUP):
            if isinstance(value, int | float):
                yield (name, figure), float(value)
            else:  # {runtime: {batch: factor}}, each file having one runtime
                for batches in value.values():
                    yield from (((name, f"{_SPEEDUP}{batch}"), float(factor)) for batch, factor in batches.items())


def _shown(value: float) -> str:
    return f"{value:.0f}" if value == int(value) and abs(value) >= 1000 else f"{value:.2f}"
