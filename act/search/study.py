"""Optuna's part of a search: where trials are kept, and who proposes the next one."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from act.errors import InputError
from act.recipe.dump import hashed_settings
from act.run.folder import differences
from act.search.space import Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage

SAMPLERS = ("auto", "tpe", "nsga2", "random", "all")
JOURNAL = "journal.log"
EXHAUSTIBLE = 10_000  # a space of up to so many combinations can be gone through one by one
_WAIT = 10  # trials that TPE waits for, at most, before it stops guessing


def need_optuna() -> None:
    """InputError when Optuna is missing; otherwise its own messages are turned off."""
    try:
        import optuna
    except ImportError:
        raise InputError("search needs Optuna 5 or newer: pip install 'vitcompress[search]'") from None
    if not hasattr(optuna.Trial, "set_constraint"):
        raise InputError(f"search needs Optuna 5 or newer, found {optuna.__version__}: pip install -U optuna")
    optuna.logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def open_storage(location: str | None, folder: Path) -> BaseStorage:
    """The storage at a URL (any that Optuna knows, or redis), or in a journal file; None: a journal in `folder`.

    Raises:
        InputError: it cannot be opened.
    """
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend, JournalRedisBackend

    where = location if location is not None else str(folder / JOURNAL)
    try:
        if where.startswith(("redis://", "rediss://", "redis+")):
            return JournalStorage(JournalRedisBackend(where))
        if "://" in where:
            return RDBStorage(where)
        return JournalStorage(JournalFileBackend(where))
    except Exception as error:  # drivers raise many types; whatever it is, this storage cannot be used
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        raise InputError(
            f"--storage: {without_password(where)} cannot be opened ({reason.replace(where, '...')}); allowed: a file "
            "name for a journal, sqlite:///FILE, or the URL of a database whose driver is installed"
        ) from None


def without_password(location: str) -> str:
    """A URL as it may be printed."""
    try:
        parts = urlsplit(location)
    except ValueError:  # no URL; what looks like a password in it is left out all the same
        return re.sub(r":[^/@]*@", ":...@", location)
    if parts.password is None:
        return location
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":...@")))


def open_study(storage: BaseStorage, name: str, space: Space, objectives: Sequence[str], ways: Sequence[str]) -> Study:
    """The study of that name, made anew where there is none; InputError when it is of another search."""
    import optuna

    settings = {"recipe": hashed_settings(space.base), "space": space.values, "objectives": list(objectives)}
    study = optuna.create_study(storage=storage, study_name=name, directions=list(ways), load_if_exists=True)
    found = study.user_attrs.get("search")
    if found is None:
        study.set_metric_names(list(objectives))
        study.set_user_attr("search", settings)
        start = space.start()
        if start:
            study.enqueue_trial(start)
    elif found != settings:
        raise InputError(
            f"--dir: holds another search ({differences(found, settings)}); choose another --dir (with "
            "--storage another --study), or give the same recipe, space and objectives to continue"
        )
    return study


def make_sampler(name: str, space: Space, trials: int | None, seed: int) -> BaseSampler:
    """The sampler called `name`; `auto` goes through every combination where there are no more than `trials`, and is
    TPE else. `trials` is how many there will be, as far as that is known."""
    from optuna.samplers import BruteForceSampler, NSGAIISampler, RandomSampler, TPESampler

    if name == "auto":
        name = "all" if trials is not None and space.size <= trials else "tpe"
    if name == "all":
        return BruteForceSampler(seed=seed)
    if name == "random":
        return RandomSampler(seed=seed)
    if name == "nsga2":  # a generation that is the whole budget would be random search
        return NSGAIISampler(population_size=50 if trials is None else max(4, min(50, trials // 5)), seed=seed)
    startup = _WAIT if trials is None else max(3, min(_WAIT, trials // 3))
    return TPESampler(n_startup_trials=startup, multivariate=True, seed=seed)


def check_sampler(name: str, space: Space) -> None:
    """InputError for a sampler that cannot be used on this space."""
    if name == "all" and space.size > EXHAUSTIBLE:
        size = "endless" if space.size == float("inf") else f"{space.size:.0f}"
        raise InputError(
            f"--sampler: all goes through every combination, and these are {size}; allowed: up to {EXHAUSTIBLE}, "
            "with a step in every range of floats"
        )
