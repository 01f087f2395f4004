"""What a training tells while it runs: a progress bar on a terminal, plain lines elsewhere, events always."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from act.verbosity import is_quiet

WINDOW = 50  # steps over which the loss terms are averaged
_SHOWN = 3  # terms of one kind that a line has room for


class Meter:
    """Running means of the loss terms over the last `WINDOW` steps, images per second and the time left."""

    def __init__(
        self,
        steps: int,
        step: int = 0,
        seconds: float = 0.0,
        images: int = 0,
        recent: Iterable[Mapping[str, float]] = (),
        eval_iter: int | None = None,
    ) -> None:
        """`recent`: the terms of the last steps before `step`; `eval_iter`: steps from one evaluation to the next."""
        self.steps, self.step, self._eval_iter = steps, step, eval_iter
        self._started_at = time.monotonic()
        self._seconds_before, self._first_step = seconds, step
        self._first_step_took = 0.0
        self._evaluated, self._evaluations = 0.0, 0
        self.images, self._images_here = images, 0
        self.recent: deque[Mapping[str, float]] = deque(recent, maxlen=WINDOW)

    def add(self, step: int, terms: Mapping[str, float], images: int) -> None:
        """Count optimiser step `step` with its loss terms and its number of images over all processes."""
        self.step = step
        self.images += images
        self._images_here += images
        self.recent.append(terms)
        if step == self._first_step + 1:
            self._first_step_took = time.monotonic() - self._started_at

    def evaluated(self, seconds: float) -> None:
        """Count an evaluation that took so long."""
        self._evaluated += seconds
        self._evaluations += 1

    @property
    def seconds(self) -> float:
        """Seconds of training, those of earlier runs of the same training included."""
        return self._seconds_before + time.monotonic() - self._started_at

    @property
    def images_per_second(self) -> float:
        """Of this process's lifetime, evaluations and data loading included."""
        return self._images_here / max(time.monotonic() - self._started_at, 1e-9)

    @property
    def eta_seconds(self) -> float:
        """Seconds until the end of training: steps at their pace so far, and the evaluations that are still due.

        The first step, in which workers start, memory is found and kernels are chosen, is no measure of the others, so
        that it counts only while there is no other. Evaluations are counted as soon as one has been timed.
        """
        done, left = self.step - self._first_step, self.steps - self.step
        training = time.monotonic() - self._started_at - self._evaluated
        pace = (training - self._first_step_took) / (done - 1) if done > 1 else training
        due = 0
        if self._eval_iter is not None and self._evaluations:
            # The last step is evaluated as well, whether eval_iter divides its number or not.
            due = -(-self.steps // self._eval_iter) - self._first_step // self._eval_iter - self._evaluations
        return pace * left + due * self._evaluated / max(self._evaluations, 1)

    def losses(self) -> dict[str, float]:
        """Mean of each term over the last steps."""
        return mean_terms(list(self.recent))


def mean_terms(recent: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each loss term over the steps that have it."""
    means = {}
    for name in dict.fromkeys(name for terms in recent for name in terms):
        values = [terms[name] for terms in recent if name in terms]
        means[name] = sum(values) / len(values)
    return means


def describe(
    title: str, meter: Meter, losses: Mapping[str, float], learning_rate: float, values: Mapping[str, float]
) -> str:
    """One line on the state of a training; `values` are what the strategy reported, without those of single layers
    (`name.layer`), which are for the events."""
    parts = ", ".join(f"{name} {value:.4g}" for name, value in by_kind(losses).items())
    line = f"{title} {meter.step}/{meter.steps}  loss {sum(losses.values()):.4g} ({parts})"
    line += "".join(f"  {name} {value:.4g}" for name, value in values.items() if "." not in name)
    return f"{line}  lr {learning_rate:.3g}  {meter.images_per_second:.1f} images/s  eta {clock(meter.eta_seconds)}"


def by_kind(losses: Mapping[str, float]) -> dict[str, float]:
    """The terms as people are shown them: many of one kind (`feature.blocks.0`, ...) as one sum, `feature (12)`."""
    kinds = Counter(name.split(".")[0] for name in losses)
    shown: dict[str, float] = {}
    for name, value in losses.items():
        kind = name.split(".")[0]
        label = f"{kind} ({kinds[kind]})" if kinds[kind] > _SHOWN else name
        shown[label] = shown.get(label, 0.0) + value
    return shown


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


class Bar:
    """A progress bar on a terminal (stderr); elsewhere nothing, and `shown` is False: print lines instead."""

    def __init__(self, title: str, steps: int, step: int, show: bool = True) -> None:
        # The event log prints its lines by the same rule.
        self.shown = show and sys.stderr.isatty() and not is_quiet()
        self._progress: Progress | None = None
        if self.shown:
            columns = (BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
            console = Console(stderr=True, highlight=False)
            self._progress = Progress(*columns, console=console, transient=True, refresh_per_second=4)
            self._task: TaskID = self._progress.add_task(title, total=steps, completed=step)

    def __enter__(self) -> Bar:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, step: int, line: str) -> None:
        """Move to `step` with `line` beside the bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step, description=line)
