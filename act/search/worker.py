"""One process of a search: takes the next trial, runs it, records it, until the budget is spent."""

from __future__ import annotations

import gc
import os
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

from act.errors import ActError, InputError
from act.run.atomic import write_text
from act.run.report import measured
from act.run.runner import run
from act.search.figures import figures_of
from act.search.lock import alone
from act.search.queue import LOCK, Budget, Queue, Taken, failure

_FAILURES = 3


def work(queue: Queue, budget: Budget, log: Callable[[str], None], finished: Callable[[], None]) -> None:
    """Run trials until the budget is spent; `finished` is called after each, while no other process writes.

    ActError when the first trials of this process all fail: then something other than the trials is wrong.
    """
    failures = 0
    while (taken := queue.take(budget, log)) is not None:
        with taken.lock:  # until the trial is recorded, or another process would take it up
            number, point = taken.trial.number, queue.space.point(taken.trial.params)
            settings = ", ".join(f"{key}={value}" for key, value in point.items())
            log(f"trial {number}{' again' if taken.again else ''}: {settings}")
            record = run_trial(queue, taken)
            with alone(queue.folder / LOCK):
                queue.tell(taken.trial, record)
                finished()
        log(f"trial {number}: {in_words(record)}")
        failures = failures + 1 if record["state"] == "failed" else 0
        if failures == _FAILURES and not any(trial.done for trial in queue.trials()):
            raise ActError(f"{_FAILURES} trials failed and none succeeded; the last one: {record['reason']}")


def run_trial(queue: Queue, taken: Taken) -> dict[str, Any]:
    """The record of one run. Whatever ends it but an interruption is a result, too."""
    path, started = queue.path(taken.trial.number), time.monotonic()
    try:
        report = run(taken.recipe, path, shared=queue.folder / "shared").report
        figures, original = figures_of(report, taken.recipe)
        missing = [name for name in queue.objectives if name not in figures]
        if missing:
            raise InputError(f"the report has no {' and no '.join(missing)}, which the search goes by")
        record: dict[str, Any] = {"state": report["status"], "reason": "", "figures": figures}
        record |= {"original": original, "goals": report["goals"], "measured": measured(report)}
    except KeyboardInterrupt:
        taken.trial.set_user_attr("tries", taken.trial.user_attrs["tries"] - 1)  # nothing was wrong with the trial
        raise
    except ActError as error:
        record = failure("; ".join(str(error).splitlines()))
    except Exception as error:  # one trial that breaks must not end the search
        write_text(path / "error.txt", traceback.format_exc())
        record = failure(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    gc.collect()  # models of one trial hold on to each other, and the next needs the memory
    place = f"process {os.getpid()} on {socket.gethostname()}, {path}"
    return record | {"place": place, "seconds": round(time.monotonic() - started, 1)}


def in_words(record: dict[str, Any]) -> str:
    """A record in a line."""
    if record["state"] == "failed":
        return f"failed: {record['reason']}"
    figures = record["figures"]
    parts = [f"{figures['metric']} {figures['accuracy']:.2f}"] if "accuracy" in figures else []
    if "latency" in figures:
        parts.append(f"{figures['latency']:.2f} ms, {figures['speedup']:.2f}x")
    parts.append(f"{figures['bytes'] / 1e6:.2f} MB")
    return f"{', '.join(parts)}; {record['state'].replace('_', ' ')}"
