"""One key of a search space: the values that it may take."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from act.recipe.coerce import Problems, convert, near, shown

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

FORMS = "{choice: [A, B]}, {int: [LOW, HIGH], step: N} or {float: [LOW, HIGH], log: true}"
KINDS = ("choice", "int", "float")
_MOST = 10**15  # steps of a range; decimals cannot tell more of them apart
_MANY = 32  # up to so many values of a range are checked one by one


@dataclass(frozen=True)
class Dimension:
    """`key` takes one of `choices`, or where there are none a number from `low` to `high`, both included.

    `step` is the distance of neighbours, None for any number between; `log` spreads the proposals evenly over the
    logarithm.
    """

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    whole: bool = False

    @property
    def size(self) -> float:
        """How many values there are; infinity where any number between two is one."""
        if self.choices:
            return len(self.choices)
        step = 1 if self.whole and self.step is None else self.step
        return math.inf if step is None else round((self.high - self.low) / step) + 1

    def distribution(self) -> BaseDistribution:
        """As Optuna has it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution([_scalar(value) for value in self.choices])
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), self.log, int(self.step or 1))
        return FloatDistribution(self.low, self.high, self.log, self.step)

    def value(self, parameter: Any) -> Any:
        """The recipe's value for Optuna's `parameter`: lists and mappings are texts there."""
        return next((value for value in self.choices if _scalar(value) == parameter), parameter)

    def parameter(self, value: Any) -> Any:
        """Optuna's parameter for a recipe's value; KeyError when the value does not belong to this dimension."""
        if self.choices:
            if value not in self.choices:
                raise KeyError(value)
            return _scalar(value)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not self.low <= value <= self.high or not self._on_step(value):
            raise KeyError(value)
        return value

    def _on_step(self, value: float) -> bool:
        step = 1 if self.whole and self.step is None else self.step
        return step is None or not (Decimal(str(value)) - Decimal(str(self.low))) % Decimal(str(step))

    def examples(self) -> list[Any]:
        """Values to check: all where they are few, else both ends and one between.

        The one between is an uneven fraction, so that a range of floats for a whole number is noticed.
        """
        if self.choices:
            return list(self.choices)
        if self.whole:
            values = range(int(self.low), int(self.high) + 1, int(self.step or 1))
            return list(values) if len(values) <= _MANY else [values[0], values[len(values) // 2], values[-1]]
        between = self.low + (self.high - self.low) * 0.3719
        return [self.low, self.high] + ([between] if self.step is None else [self.low + self.step])


def _scalar(value: Any) -> bool | int | float | str | None:
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value, sort_keys=True)


def read_dimension(key: str, given: Any, problems: Problems) -> Dimension | None:
    """The dimension that a space says for `key`, None when it is wrong, which is reported."""
    if not isinstance(given, Mapping):
        problems.add(key, f"expected the values to try, got {shown(given)}; allowed: {FORMS}")
        return None
    kinds = [name for name in given if name in KINDS]
    if len(kinds) != 1:
        hint = "".join(near(name, KINDS) for name in given if name not in KINDS and not kinds)
        what = f"both {' and '.join(kinds)}" if kinds else f"none of {', '.join(KINDS)}{hint}"
        problems.add(key, f"has {what}; allowed: {FORMS}")
        return None
    kind = kinds[0]
    known = {"choice": (), "int": ("step", "log"), "float": ("step", "log")}[kind]
    before = len(problems.found)
    for name in given:
        if name not in (kind, *known):
            problems.add(f"{key}.{name}", f"unknown key{near(name, known)}; allowed: {', '.join((kind, *known))}")
    if kind == "choice":
        choices = _choices(key, given[kind], problems)
        return Dimension(key, tuple(choices)) if len(problems.found) == before else None
    found = _range(key, kind, given, problems)
    return found if len(problems.found) == before else None


def _choices(key: str, given: Any, problems: Problems) -> Sequence[Any]:
    if not isinstance(given, list) or len(given) < 2:
        problems.add(
            key, f"choice: {shown(given)}; allowed: a list of two values or more (one value: set it in the recipe)"
        )
        return []
    for index, value in enumerate(given):
        if value in given[:index]:
            problems.add(key, f"choice: {shown(value)} is given twice; keep one of them")
    return given


def _range(key: str, kind: str, given: Mapping[str, Any], problems: Problems) -> Dimension | None:
    number = int if kind == "int" else float
    ends, step, log = given[kind], given.get("step"), given.get("log", False)
    if not isinstance(ends, list) or len(ends) != 2:
        problems.add(key, f"{kind}: {shown(ends)}; allowed: [LOW, HIGH]")
        return None
    before = len(problems.found)
    low, high = (convert(number, end, f"{key}.{kind}", problems) for end in ends)
    step = None if step is None else convert(number, step, f"{key}.step", problems)
    log = convert(bool, log, f"{key}.log", problems)
    if len(problems.found) > before:
        return None
    if not low < high:
        problems.add(key, f"{kind}: [{low:g}, {high:g}] is empty; allowed: LOW below HIGH")
        return None
    if log and low <= 0:
        problems.add(key, f"log: true from {low:g}; allowed: LOW above 0")
    if log and step is not None:
        problems.add(key, "log and step exclude each other; keep one of them")
    if step is not None and not 0 < step <= high - low:
        problems.add(f"{key}.step", f"{step:g}; allowed: above 0, up to {high - low:g}")
    elif step is not None and (high - low) / step > _MOST:
        problems.add(f"{key}.step", f"{step:g} makes more than {_MOST:g} steps from {low:g} to {high:g}; leave it out")
    elif step is not None and (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)):
        problems.add(f"{key}.step", f"{step:g} does not lead from {low:g} to {high:g}; choose HIGH so that it does")
    return Dimension(key, (), low, high, step, log, kind == "int")
