"""Finished runs side by side: their figures, and the keys in which their recipes differ."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from act.errors import InputError
from act.recipe.text import parse, read_text
from act.run.folder import RunFolder
from act.run.page.parts import metrics
from act.run.page.summary import RUNTIMES
from act.run.report import read_report
from act.strategies.base import load_strategies

NO_MATTER = ("name", "description", "results", "schema")
ABSENT = "-"
NOTHING = {ABSENT, "null", "{}"}  # a key that an older version did not know, or left empty, says the same


@dataclass(frozen=True)
class Run:
    """A finished run. `name` tells it from the others; `settings` is its recipe, with every default, by section."""

    name: str
    folder: Path
    report: dict[str, Any]
    settings: dict[str, Any]


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs in these folders, and remarks on what stands in the way of comparing them.

    A folder given twice counts once. Raises InputError: fewer than two runs, or folders that are no finished runs.
    """
    notes, problems, found = [], [], []
    kept = {folder.resolve(): folder for folder in reversed(folders)}
    chosen = [folder for folder in folders if kept.get(folder.resolve()) is folder]
    for folder in chosen:
        if sum(other.resolve() == folder.resolve() for other in folders) > 1:
            notes.append(f"{folder}: given more than once; it is shown once")
    short = [folder.name or str(folder) for folder in chosen]
    for folder, name in zip(chosen, short, strict=True):
        try:
            found.append(_read(folder, name if short.count(name) == 1 else str(folder)))
        except InputError as error:
            problems += error.problems
    if not problems and len(found) < 2:
        problems.append(f"{folders[0]}: one run alone; name two different runs or more")
    if problems:
        raise InputError(problems)
    return found, notes + _obstacles(found)


def _read(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name the folders of finished runs")
    report = read_report(RunFolder(folder))
    if report is None or not _complete(report):
        what = "no report.json that can be read" if (folder / "report.json").exists() else "no report.json"
        raise InputError(
            f"{folder}: has {what}, so it is no finished run; finish it with: vitcompress run RECIPE --dir"
        )
    # The recipe beside the files is that of the attempt that was kept.
    recipe = next(
        (path for path in (folder / "artifact" / "recipe.yaml", folder / "recipe.yaml") if path.is_file()), None
    )
    if recipe is None:
        raise InputError(f"{folder}: has no recipe.yaml, so it is no finished run")
    document = parse(read_text(recipe), str(recipe))
    if document.problems:
        raise InputError([f"{recipe}:{problem}" for problem in document.problems])
    settings = {key: value for key, value in document.values.items() if key not in NO_MATTER}
    for section in ("model", *load_strategies()):
        if not isinstance(settings.get(section, {}), dict):
            raise InputError(f"{recipe}: {section}: {settings[section]!r} is no section; the file is damaged")
    return Run(name, folder, report, settings)


def _complete(report: Mapping[str, Any]) -> bool:
    """Whether the report has what a comparison reads."""
    try:
        return bool(
            report["baseline"]["bytes"]
            and all(item["format"] and item["bytes"] for item in report["artifacts"])
            and all(stage["name"] and stage["seconds"] >= 0 for stage in report["stages"])
            and report["artifacts"]
        )
    except (KeyError, TypeError):
        return False


def _obstacles(runs: Sequence[Run]) -> list[str]:
    """What makes figures of these runs less than comparable."""
    notes = []

    def differing(what: str, values: Sequence[Any], text: str) -> None:
        if len(set(map(str, values))) > 1:
            shown = ", ".join(f"{run.name} {value}" for run, value in zip(runs, values, strict=True))
            notes.append(f"{what} ({shown}): {text}")

    data = [run.report.get("data") or {} for run in runs]
    differing(
        "runs of different data",
        [str(item.get("fingerprint"))[:8] for item in data],
        "their images differ, so that accuracies cannot be compared directly",
    )
    names = [run.settings.get("model", {}).get("name") or "a module" for run in runs]
    weights = [str(run.report.get("model", {}).get("weights"))[:8] for run in runs]
    differing(
        "runs of different originals",
        # Of one architecture it is the weights that differ.
        names if len(set(names)) > 1 else [f"{name} with weights {w}" for name, w in zip(names, weights, strict=True)],
        "sizes and speed-ups are each against its own",
    )
    differing(
        "runs on different processors",
        [run.report.get("environment", {}).get("cpu") for run in runs],
        "compare speed-ups rather than milliseconds",
    )
    return notes


def timings(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Every (runtime, batch) that a file was timed in."""
    return list(
        dict.fromkeys(
            (backend, batch)
            for run in runs
            for item in run.report["artifacts"]
            for backend, batches in item.get("speedup", {}).items()
            for batch in batches
        )
    )


def rows(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Columns and a row for each exported file of each run; the first of a run has its name, stages and seconds."""
    names = list(dict.fromkeys(name for run in runs for name in metrics(run.report)))
    times = timings(runs)
    columns = ["run", "file"]
    for name in names:
        columns += [name, "change"] if name != "agreement" else [name]
    columns += ["bytes", "smaller", *(f"{RUNTIMES.get(backend, backend)} b{batch}" for backend, batch in times)]
    columns += ["stages", "seconds"]
    found = []
    for run in runs:
        base = run.report["baseline"]
        for number, item in enumerate(run.report["artifacts"]):
            row = [run.name if number == 0 else "", item["format"]]
            for name in names:
                value, before = item.get(name), base.get(name)
                row.append(ABSENT if value is None else f"{value:.2f}")
                if name != "agreement":
                    row.append(ABSENT if value is None or before is None else f"{value - before:+z.2f}")
            row += [f"{item['bytes']:,}", f"{base['bytes'] / item['bytes']:.2f}x"]
            factors = [item.get("speedup", {}).get(backend, {}).get(batch) for backend, batch in times]
            row += [ABSENT if factor is None else f"{factor:.2f}x" for factor in factors]
            stages = run.report["stages"]
            total = f"{sum(stage['seconds'] for stage in stages):.0f}"
            row += [" + ".join(stage["name"] for stage in stages), total] if number == 0 else ["", ""]
            found.append(row)
    return columns, found


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(dotted key, value of each run) for the keys in which the recipes differ.

    A strategy that only some of them have is one key, its value what is not default.
    """
    strategies = load_strategies()
    result = []
    for section in dict.fromkeys(key for run in runs for key in run.settings):
        values = [run.settings.get(section) for run in runs]
        if section in strategies and any(value is None for value in values):
            defaults = dataclasses.asdict(strategies[section].Config())
            result.append((section, [ABSENT if value is None else _own(value, defaults) for value in values]))
            continue
        flat = [dict(_flat(value, section)) for value in values]
        for key in dict.fromkeys(key for items in flat for key in items):
            shown = [_shown(items[key]) if key in items else ABSENT for items in flat]
            if len(set(shown)) > 1 and not set(shown) <= NOTHING:
                result.append((key, shown))
    return result


def _own(value: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    own = [f"{key}: {_shown(item)}" for key, item in value.items() if key not in defaults or item != defaults[key]]
    return ", ".join(own) or "as by default"


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}")
    elif value is not None or "." in key:
        yield key, value


def _shown(value: Any) -> str:
    """A value as a recipe has it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def as_json(runs: Sequence[Run], notes: Sequence[str]) -> dict[str, Any]:
    """Everything compared as plain values."""
    names = [run.name for run in runs]
    return {
        "schema": 1,
        "runs": [_figures(run) for run in runs],
        "differences": {key: dict(zip(names, values, strict=True)) for key, values in differences(runs)},
        "notes": list(notes),
    }


def _figures(run: Run) -> dict[str, Any]:
    report = run.report
    keys = ("format", *metrics(report), "bytes", "params", "macs", "latency", "speedup")
    return {
        "name": run.name,
        "folder": str(run.folder),
        "recipe": report.get("name"),
        "status": report.get("status"),
        "data": (report.get("data") or {}).get("fingerprint"),
        "seconds": round(sum(stage["seconds"] for stage in report["stages"]), 2),
        "stages": [stage["name"] for stage in report["stages"]],
        "baseline": report["baseline"],
        "artifacts": [{key: item[key] for key in keys if key in item} for item in report["artifacts"]],
    }
