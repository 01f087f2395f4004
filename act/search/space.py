"""A search space: which keys of a recipe may take which values, checked before anything runs."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act.errors import InputError
from act.recipe import text
from act.recipe.aliases import section_name
from act.recipe.coerce import Problems, shown
from act.recipe.compose import set_value
from act.recipe.load import SECTIONS, recipe_from_dict, recipe_to_dict
from act.search.dimension import Dimension, read_dimension
from act.strategies.base import load_strategies

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from act.recipe.schema import Recipe

OFF = "off"  # the value of a strategy's whole section that leaves the strategy out
EXAMPLE = "a space names the values to try, e.g. `QuantPost.weight_bits: {choice: [4, 8]}`"
_CONTEXTS = 64
_FIXED = {
    "name": "does not change a run",
    "description": "does not change a run",
    "results": "is written by a search",
    "schema": "belongs to the file",
    "defaults": "is no value; name the values themselves",
    "target": "is what all trials are judged by",
    "data.val": "is what all trials are measured on",
    "data.limit_val": "is what all trials are measured on",
    "data.class_map": "is what all trials are measured with",
    "TrainConfig.metric": "is what all trials are judged by",
    "TrainConfig.metric_mode": "is what all trials are judged by",
}


@dataclass(frozen=True)
class Space:
    """The dimensions of a search in the order of the file, and the recipe that they change."""

    base: Recipe
    dimensions: tuple[Dimension, ...]
    values: dict[str, Any]  # as the file has it
    folder: Path  # where relative paths among the values start

    @property
    def size(self) -> float:
        """How many combinations there are."""
        return math.prod(dimension.size for dimension in self.dimensions)

    def distributions(self) -> dict[str, BaseDistribution]:
        """As Optuna has it."""
        return {dimension.key: dimension.distribution() for dimension in self.dimensions}

    def point(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe's values for Optuna's parameters."""
        return {item.key: item.value(parameters[item.key]) for item in self.dimensions if item.key in parameters}

    def recipe(self, point: Mapping[str, Any]) -> Recipe:
        """The base recipe with the values of `point`; InputError with every reason why that is none.

        It has one attempt: a milder recipe would be another point of the space, which is the search's to choose.
        """
        recipe = changed(self.base, point, "this combination", self.folder)
        return dataclasses.replace(recipe, target=dataclasses.replace(recipe.target, attempts=1))

    def start(self) -> dict[str, Any]:
        """Optuna's parameters of the base recipe itself, as far as they lie in the space."""
        tree = recipe_to_dict(self.base)
        found = {}
        for dimension in self.dimensions:
            node: Any = tree
            for part in dimension.key.split("."):
                node = node.get(part, OFF) if isinstance(node, dict) else None
            try:
                found[dimension.key] = dimension.parameter(node)
            except KeyError:
                continue
        return found


def read_space(path: Path, base: Recipe) -> Space:
    """The space in a YAML file of `dotted.key: {choice: [...]}` and ranges; relative paths start at its folder.

    Raises:
        InputError: with every problem found, one line each: unknown keys, empty ranges, values that the recipe refuses.
    """
    if not path.is_file():
        raise InputError(f"--space: {path}: no such file; {EXAMPLE}")
    document = text.parse(text.read_text(path), str(path), EXAMPLE)
    problems = Problems(str(path), document.lines)
    problems.found += [f"{path}:{problem}" for problem in document.problems]
    registry = load_strategies()
    dimensions: dict[str, Dimension] = {}
    for given, values in document.values.items():
        first, dot, rest = given.partition(".")
        key = section_name(first, registry) + dot + rest
        problems.lines = {**problems.lines, key: document.lines[given]}
        fixed = next((name for name in _FIXED if key == name or key.startswith(f"{name}.")), None)
        if fixed is not None:
            problems.add(given, f"cannot be searched over: {fixed} {_FIXED[fixed]}")
        elif not all(key.split(".")):
            problems.add(given, "not a dotted key; write Section.key")
        elif key in SECTIONS:
            problems.add(given, "a whole section that is no strategy; name its keys one by one")
        elif key in dimensions:
            problems.add(given, "given twice; keep one of them")
        elif (found := read_dimension(key, values, problems)) is not None:
            dimensions[key] = found
    space = Space(base, tuple(dimensions.values()), document.values, path.resolve().parent)
    for dimension in space.dimensions:
        _check(dimension, space, problems)
    problems.raise_if_any()
    return space


def changed(base: Recipe, point: Mapping[str, Any], source: str, folder: Path | None = None) -> Recipe:
    """`base` with the values of `point` by dotted key, checked as a whole; relative paths among them start at `folder`.

    A strategy whose section is OFF is left out, with the values below it and its training section. InputError with
    every problem, each beginning with `source`.
    """
    off = [key for key, value in point.items() if value == OFF and key in load_strategies()]
    without = [prefix for key in off for prefix in (f"{key}.", f"TrainConfig.stages.{key}.")]
    tree = recipe_to_dict(dataclasses.replace(base, results={}))
    problems = Problems(source)
    for key, value in sorted(point.items(), key=lambda item: item[0].count(".")):  # sections before what is in them
        if key not in off and not any(key.startswith(prefix) for prefix in without):
            set_value(tree, key.split("."), copy.deepcopy(value), problems)  # more may be set inside it
    problems.raise_if_any()
    return recipe_from_dict(tree, [f"~{key}" for key in off], folder, source)


def _check(dimension: Dimension, space: Space, problems: Problems) -> None:
    """Report the values of `dimension` that the recipe refuses whichever of the other strategies are on."""
    sections = [item for item in space.dimensions if "." not in item.key and item.key != dimension.key]
    combinations = itertools.product(*([(item.key, value) for value in item.choices] for item in sections))
    contexts = [{}, *(dict(pairs) for pairs in itertools.islice(combinations, _CONTEXTS) if pairs)]
    source = f"{problems.source}:{problems.lines[dimension.key]}"
    for value in dimension.examples():
        refused: list[str] | None = None
        for context in contexts:
            try:
                changed(space.base, {**context, dimension.key: value}, source, space.folder)
                break
            except InputError as error:
                refused = error.problems if refused is None else refused
        else:
            for line in refused or []:
                named = line.startswith(f"{source}: {dimension.key}")
                line += "" if named else f" (with {dimension.key}: {shown(value)})"
                problems.found += [line] if line not in problems.found else []
