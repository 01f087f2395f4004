"""The trials of a search as its processes share them: who takes which, and what became of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from act.errors import InputError
from act.recipe.load import recipe_hash
from act.recipe.references import local_paths
from act.search.figures import Trial, directions, violations
from act.search.lock import alone, take
from act.search.space import Space
from act.search.study import EXHAUSTIBLE, make_sampler, open_storage, open_study

if TYPE_CHECKING:
    import optuna

    from act.recipe.schema import Recipe

LOCK = ".lock"
TRIES = 5  # a trial that has ended so many processes is not started again
_PROPOSALS = 50  # without one that can be run, there is hardly anything left to try


@dataclass
class Budget:
    """When to stop: after so many trials of all workers together, and no new trial after so many hours of this one."""

    trials: int | None
    hours: float | None
    started: float = field(default_factory=time.monotonic)

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self.hours is not None and time.monotonic() - self.started >= 3600 * self.hours


@dataclass
class Taken:
    """A trial that this process holds: Optuna's, the recipe it runs, and its lock."""

    trial: optuna.Trial
    recipe: Recipe
    lock: TextIO
    again: bool  # an earlier process left it unfinished


class Queue:
    """The trials of one search in `folder`, which several processes may share, or only the storage.

    Raises:
        InputError: the folder or the storage cannot be used, or holds another search.
    """

    def __init__(
        self, folder: Path, space: Space, objectives: Sequence[str], location: str | None, name: str, sampler: str
    ) -> None:
        self.folder, self.space, self.objectives, self.sampler = folder, space, list(objectives), sampler
        try:
            inside = {item.name for item in folder.iterdir()} if folder.is_dir() else set()
            if inside - {LOCK} and "trials" not in inside:
                raise InputError(f"--dir: {folder} has files but no search in it; choose an empty or a new folder")
            (folder / "trials").mkdir(parents=True, exist_ok=True)
            with alone(folder / LOCK):
                self.storage = open_storage(location, folder)
                ways = directions(objectives, space.base)
                self.study = open_study(self.storage, name, space, objectives, ways)
        except OSError as error:
            raise InputError(f"--dir: {folder} cannot be written ({error.strerror}); choose another folder") from None
        self.own = location is None  # every process of this search works in this folder
        # A sampler is there for the moment of a proposal only: some act on every handle or end of a trial as well.
        self.idle = self.study.sampler = make_sampler("random", space, None, 0)
        self.study_id = self.storage.get_study_id_from_name(name)

    def trials(self) -> list[Trial]:
        """All trials so far, of every process."""
        return [self.seen(trial) for trial in self.study.get_trials(deepcopy=False) if trial.state.name != "WAITING"]

    def seen(self, trial: optuna.trial.FrozenTrial) -> Trial:
        """One of Optuna's trials as everybody sees it."""
        record = dict(trial.user_attrs.get("record", {}))
        if trial.state.name == "RUNNING":  # what is recorded already belongs to a trial that is about to end
            record = {"place": record.get("place", "")}
        defaults: dict[str, Any] = {
            "state": "running" if trial.state.name == "RUNNING" else "failed",
            "figures": {},
            "original": {},
            "goals": [],
            "measured": {},
            "reason": "",
            "place": "",
            "seconds": 0.0,
        }
        return Trial(number=trial.number, point=self.space.point(trial.params), **{**defaults, **record})

    def take(self, budget: Budget, log: Callable[[str], None]) -> Taken | None:
        """The next trial: one that an ended process left, else a new one; None when the budget is spent."""
        with alone(self.folder / LOCK):
            if budget.over:
                log(f"{budget.hours:g} hours are over; no further trial is started")
                return None
            left = self.left_over()
            if left is not None:
                return left
            counted = [trial for trial in self.trials() if trial.state != "passed_over"]
            if budget.trials is not None and len(counted) >= budget.trials:
                return None
            return self.propose(budget.trials, log)

    def left_over(self) -> Taken | None:
        """A trial whose process has ended without recording it."""
        import optuna

        for frozen in self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            path = self.lock_path(frozen.number)
            # With a storage of its own, a trial that has no lock here may be one of another machine's folder.
            lock = take(path) if self.own or path.exists() else None
            if lock is None:
                continue
            trial_id = self.storage.get_trial_id_from_study_id_trial_number(self.study_id, frozen.number)
            trial = optuna.Trial(self.study, trial_id)
            recipe, reason = self.usable(trial)
            tries = int(trial.user_attrs.get("tries", 0)) + 1
            if recipe is not None and tries <= TRIES:
                trial.set_user_attr("tries", tries)
                return Taken(trial, recipe, lock, again=True)
            if recipe is None:
                self.tell(trial, failure(reason) | {"state": "passed_over"})
            else:
                self.tell(trial, failure(f"has ended its process {TRIES} times; see {self.path(trial.number)}"))
            lock.close()
        return None

    def propose(self, trials: int | None, log: Callable[[str], None]) -> Taken | None:
        """A new trial; what was tried before, or is no recipe, is passed over."""
        for attempt in range(_PROPOSALS):
            past = self.study.get_trials(deepcopy=False)
            tried = {tuple(sorted((k, repr(v)) for k, v in trial.params.items())) for trial in past if trial.params}
            if len(tried) >= self.space.size and not any(trial.state.name == "WAITING" for trial in past):
                log(f"every one of the {self.space.size:.0f} combinations was tried")
                return None
            again = "all" if self.space.size <= EXHAUSTIBLE else "random"
            name = self.sampler if attempt == 0 else again
            # Samplers keep their state in the storage; the number gives each proposal random numbers of its own.
            seed = self.space.base.seed + 1_000_003 * len(past)
            self.study.sampler = make_sampler(name, self.space, trials, seed % 2**32)
            trial = self.study.ask(self.space.distributions())
            self.study.sampler = self.idle
            recipe, reason = self.usable(trial)
            if recipe is None:
                self.tell(trial, failure(reason) | {"state": "passed_over"})
                continue
            lock = take(self.lock_path(trial.number))
            assert lock is not None
            trial.set_user_attr("tries", 1)
            return Taken(trial, recipe, lock, again=False)
        log(f"{_PROPOSALS} proposals brought nothing new; the search ends")
        return None

    def usable(self, trial: optuna.Trial) -> tuple[Recipe | None, str]:
        """The recipe of a proposal, or why it is passed over."""
        if set(trial.params) != set(self.space.distributions()):
            return None, "its process ended while it was proposed"
        try:
            point = self.space.point(trial.params)
            recipe = self.space.recipe(point)
        except InputError as error:
            return None, "; ".join(error.problems)
        # The hash has the last part of paths only, to be the same on every machine; here paths may be what differs.
        same = " ".join([recipe_hash(recipe), *(f"{key}={path}" for key, path in local_paths(point))])
        for other in self.study.get_trials(deepcopy=False):
            if other.user_attrs.get("recipe_hash") == same and other.number != trial.number:
                return None, f"the same recipe as trial {other.number}"
        trial.set_user_attr("recipe_hash", same)
        return recipe, ""

    def tell(self, trial: optuna.Trial, record: dict[str, Any]) -> None:
        """Record a trial that has ended, for Optuna and for everybody else."""
        from optuna.trial import TrialState

        trial.set_user_attr("record", record)
        if record["state"] in ("failed", "passed_over"):
            self.study.tell(trial, state=TrialState.FAIL)
            return
        for key, value in violations(record["goals"]).items():
            if key not in trial.constraints:
                trial.set_constraint(key, value)
        self.study.tell(trial, [record["figures"][name] for name in self.objectives])

    def path(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.folder / "trials" / f"{number:04d}"

    def lock_path(self, number: int) -> Path:
        """The file that says, by its lock, that a process works on a trial."""
        return self.folder / "trials" / f".{number:04d}.lock"


def failure(reason: str) -> dict[str, Any]:
    """The record of a trial without results."""
    return {"state": "failed", "reason": reason}
