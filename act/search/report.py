"""What a search leaves: search.json, best.yaml and the picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from act.errors import ActError
from act.recipe.load import dump_recipe
from act.recipe.schema import Recipe
from act.run.atomic import write_json, write_text
from act.search.figures import Trial, best, front
from act.search.picture import draw, matplotlib_missing
from act.search.space import Space

SUMMARY, BEST, PICTURE = "search.json", "best.yaml", "pareto.svg"
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Findings:
    """The trials of a search, the best of them and those that no other surpasses. `command` starts the search."""

    space: Space
    objectives: tuple[str, ...]
    trials: tuple[Trial, ...]
    command: str

    @property
    def best(self) -> Trial | None:
        return best(self.trials, self.objectives, self.space.base)

    @property
    def front(self) -> list[Trial]:
        return front(self.trials, self.objectives, self.space.base)

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain JSON."""
        chosen = self.best
        return {
            "schema": 1,
            "name": self.space.base.name,
            "status": chosen.state if chosen is not None else "none",
            "objectives": list(self.objectives),
            "space": self.space.values,
            "best": chosen.number if chosen is not None else None,
            "front": [trial.number for trial in self.front],
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
        }

    def frozen(self) -> Recipe | None:
        """The recipe of the best trial with its measured results, None while there is none."""
        chosen = self.best
        if chosen is None:
            return None
        recipe = self.space.recipe(chosen.point)
        found = {"command": self.command, "trial": chosen.number, "searched": chosen.point, **chosen.measured}
        return dataclasses.replace(recipe, name=f"{recipe.name[: _LONGEST_NAME - 5]}-best", results=found)


def write(folder: Path, findings: Findings) -> None:
    """Write what there is so far to `folder`; the picture where matplotlib is installed and there is one to draw."""
    write_json(folder / SUMMARY, findings.as_json())
    frozen = findings.frozen()
    if frozen is not None:
        write_text(folder / BEST, dump_recipe(frozen))
    if frozen is not None and matplotlib_missing() is None:
        chosen, recipe = findings.best, findings.space.base
        write_text(folder / PICTURE, draw(findings.trials, findings.front, chosen, findings.objectives, recipe))


def need_result(findings: Findings) -> Trial:
    """The best trial; ActError when there is none."""
    chosen = findings.best
    if chosen is not None:
        return chosen
    failed = [trial for trial in findings.trials if trial.state in ("failed", "passed_over")]
    running = sum(trial.state == "running" for trial in findings.trials)
    if running:
        raise ActError(f"no trial has finished yet; {running} of other processes still run")
    raise ActError(f"no trial succeeded; the last one: {failed[-1].reason}" if failed else "no trial was run")


def columns(findings: Findings) -> tuple[list[str], list[list[str]]]:
    """The table of the trials that were run, best first where they are done: its columns and its rows."""
    keys = [dimension.key for dimension in findings.space.dimensions]
    shown = [trial for trial in findings.trials if trial.state != "passed_over"]
    metric = next((trial.figures["metric"] for trial in shown if trial.done), "accuracy")
    names = ["accuracy", *(["agreement"] if metric != "agreement" else []), "latency", "speedup", "bytes"]
    names = [name for name in names if any(name in trial.figures for trial in shown)]
    heads = {"accuracy": metric, "latency": "ms", "bytes": "MB"}
    on_front = {trial.number for trial in findings.front}
    chosen = findings.best
    rows = []
    for trial in shown:
        cells = [str(trial.number), *(_text(trial.point.get(key, "-")) for key in keys)]
        cells += [_figure(trial, name) for name in names]
        marks = ["best"] * (trial == chosen) + ["front"] * (trial.number in on_front)
        rows.append([*cells, trial.state.replace("_", " "), ", ".join(marks)])
    return ["trial", *short(keys), *(heads.get(name, name) for name in names), "result", ""], rows


def short(keys: Sequence[str]) -> list[str]:
    """Each key by its last part, or by more of its parts where the last one is not its alone."""
    found = []
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        alone = (end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1)
        found.append(next(alone, key))
    return found


def _figure(trial: Trial, name: str) -> str:
    value = trial.figures.get(name)
    if value is None:
        return "-"
    return f"{value / 1e6:.2f}" if name == "bytes" else f"{value:.2f}x" if name == "speedup" else f"{value:.2f}"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "null" if value is None else str(value)
