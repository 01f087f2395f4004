"""From a YAML file to a validated `Recipe`: every problem is found before any model is built.

text -> plain values -> aliases -> config groups and overrides (Hydra's compose) -> typed dataclasses -> ranges,
combinations, paths
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from act.errors import InputError
from act.recipe import text
from act.recipe.aliases import act_fields, canonical_lines, rename_sections, section_name
from act.recipe.check import (
    check_combination,
    check_data,
    check_export,
    check_model,
    check_target,
    check_top,
    check_train,
)
from act.recipe.coerce import Problems, build, convert, near
from act.recipe.compose import Overrides, compose_groups
from act.recipe.dump import dump_recipe, recipe_hash, recipe_to_dict
from act.recipe.guard import plain
from act.recipe.paths import find_recipe
from act.recipe.references import model_configs, resolve_references
from act.recipe.results import check_results
from act.recipe.schema import DataConfig, ExportConfig, ModelConfig, Recipe, TargetConfig, TrainConfig
from act.strategies.base import Phase, Strategy, load_strategies

__all__ = [
    "Loaded",
    "dump_recipe",
    "load_recipe",
    "read_document",
    "read_recipe",
    "recipe_from_dict",
    "recipe_hash",
    "recipe_to_dict",
    "stage_train_config",
    "training_stages",
]

# Section of the YAML -> (attribute of Recipe, its dataclass)
SECTIONS: dict[str, tuple[str, type]] = {
    "model": ("model", ModelConfig),
    "data": ("data", DataConfig),
    "TrainConfig": ("train", TrainConfig),
    "target": ("target", TargetConfig),
    "export": ("export", ExportConfig),
}
_PLAIN = {"name": str, "description": str, "schema": int, "seed": int, "results": dict[str, Any]}


@dataclass
class Loaded:
    """A recipe, and remarks on how it was read (ACT spellings that were translated)."""

    recipe: Recipe
    notes: list[str] = field(default_factory=list)


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, or the shipped one of that name, with `key=value` overrides applied.

    Raises:
        InputError: with every problem found, one line each.
    """
    return read_recipe(path_or_name, overrides).recipe


def read_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """As `load_recipe`, with the notes."""
    path = find_recipe(path_or_name)
    document = text.parse(text.read_text(path), str(path))
    return read_document(document, str(path), path.resolve().parent, overrides, path.stem)


def read_document(
    document: text.Document, source: str, folder: Path, overrides: Sequence[str] = (), default_name: str = "recipe"
) -> Loaded:
    """The recipe in parsed YAML; relative paths start at `folder`. Raises as `load_recipe`."""
    problems = Problems(source, canonical_lines(document.lines, load_strategies()))
    problems.found += [f"{source}:{problem}" for problem in document.problems]
    return _read(document.values, overrides, folder, problems, default_name)


def recipe_from_dict(
    values: Mapping[str, Any], overrides: Sequence[str] = (), folder: Path | None = None, source: str = "recipe"
) -> Recipe:
    """The recipe in a mapping shaped like the YAML; relative paths start at `folder` (default: the current one).

    Raises:
        InputError: with every problem found, one line each.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{source}: expected a mapping of sections, got {type(values).__name__}")
    return _read(values, overrides, folder or Path.cwd(), Problems(source), default_name="recipe").recipe


def training_stages(names: Sequence[str], registry: Mapping[str, type[Strategy]]) -> list[str]:
    """Which of a recipe's strategies have a stage that trains; Distillation has one only where no other does."""
    others = [name for name in names if registry[name].phase is not Phase.OBJECTIVE and registry[name].trains]
    return others or [name for name in names if registry[name].phase is Phase.OBJECTIVE]


def stage_train_config(recipe: Recipe, strategy_name: str) -> TrainConfig:
    """The training section of one stage: the general one with what `stages` says for the strategy."""
    values = {item.name: getattr(recipe.train, item.name) for item in dataclasses.fields(TrainConfig)}
    changes = recipe.train.stages.get(strategy_name, {})
    # The two ways to give the length exclude each other, so the more specific one replaces the other.
    if changes.get("train_iter") is not None and "epochs" not in changes:
        values["epochs"] = None
    elif changes.get("epochs") is not None and "train_iter" not in changes:
        values["train_iter"] = None
    return TrainConfig(**(values | changes | {"stages": {}}))


def _read(
    values: Mapping[str, Any], words: Sequence[str], folder: Path, problems: Problems, default_name: str
) -> Loaded:
    registry = load_strategies()
    tree = plain(values, "", problems)
    defaults = tree.pop("defaults", None)
    kept = {key: tree.pop(key) for key in ("results", "description") if key in tree}  # no part of the composition
    body = _known_sections(rename_sections(tree, registry, problems), registry, problems)
    overrides = Overrides(words, lambda name: section_name(name, registry))
    problems.found += overrides.problems
    problems.overridden.update([*overrides.keys, *overrides.removed])
    _known_sections(dict.fromkeys(overrides.removed), registry, problems)  # what is misspelled would remove nothing
    kept = {key: value for key, value in kept.items() if key not in overrides.removed}
    composed = compose_groups(body, None if "defaults" in overrides.removed else defaults, overrides, problems)
    overrides.apply(composed, problems)
    _forget(composed, overrides.removed)
    composed = _known_sections(rename_sections(composed, registry, problems), registry, problems)
    strategies = {name: cls.Config for name, cls in registry.items() if name in composed}
    notes = act_fields(composed, strategies | {"TrainConfig": TrainConfig}, problems)
    recipe = _build({"name": default_name} | kept | composed, registry, problems)
    _check(recipe, registry, problems)
    resolve_references(recipe, folder, problems)
    problems.raise_if_any()
    return Loaded(recipe, notes)


def _forget(tree: dict[str, Any], removed: Sequence[str]) -> None:
    """Drop the per-stage training of sections that the command line removed."""
    train = tree.get("TrainConfig")
    stages = train.get("stages") if isinstance(train, dict) else None
    if isinstance(stages, dict):
        for name in removed:
            stages.pop(name, None)


def _known_sections(tree: dict[str, Any], registry: dict[str, type[Strategy]], problems: Problems) -> dict[str, Any]:
    allowed = [*registry, *SECTIONS, *_PLAIN, "defaults"]
    known = {}
    for name, value in tree.items():
        if name in allowed:
            known[name] = value
        else:
            hint = near(name, allowed)
            problems.add(
                name,
                f"unknown section{hint}; strategies: {', '.join(registry)}; other sections: "
                f"{', '.join([*SECTIONS, *_PLAIN])}",
            )
    return known


def _build(tree: dict[str, Any], registry: dict[str, type[Strategy]], problems: Problems) -> Recipe:
    """The recipe with every section that could be read; the others keep their defaults and are in `problems`."""
    recipe = Recipe()
    for name, kind in _PLAIN.items():
        if name in tree:
            before = len(problems.found)
            value = convert(kind, tree[name], name, problems)
            if len(problems.found) == before:
                setattr(recipe, name, value)
    for name, (attribute, cls) in SECTIONS.items():
        section = build(cls, tree.get(name), name, problems)
        if section is not None:
            setattr(recipe, attribute, section)
    for name, strategy in registry.items():
        if name not in tree:
            continue
        before = len(problems.found)
        config = build(strategy.Config, tree[name], name, problems)
        if config is not None:
            recipe.strategies[name] = config
        if len(problems.found) > before:
            continue  # a strategy's own checks expect the right types
        for problem in strategy.problems(config):
            key, _, what = problem.partition(": ")
            problems.add(f"{name}.{key}", what)
    recipe.train.stages = _stages(recipe.train.stages, tree, registry, problems)
    return recipe


def _stages(
    stages: dict[str, Any], tree: dict[str, Any], registry: dict[str, type[Strategy]], problems: Problems
) -> dict[str, Any]:
    """Per-stage overrides with canonical names and typed values."""
    result: dict[str, Any] = {}
    here = training_stages([name for name in registry if name in tree], registry)
    for given, values in stages.items():
        name, key = section_name(given, registry), f"TrainConfig.stages.{given}"
        if name not in here:
            hint = near(given, here)
            problems.add(key, f"no stage of this recipe that trains{hint}; allowed: {', '.join(here) or 'none'}")
            continue
        if isinstance(values, dict) and "stages" in values:
            problems.add(f"{key}.stages", "stages cannot be nested")
            continue
        before = len(problems.found)
        typed = build(TrainConfig, values, key, problems)
        if len(problems.found) == before:
            result[name] = {field_name: getattr(typed, field_name) for field_name in values or {}}
    return result


def _check(recipe: Recipe, registry: dict[str, type[Strategy]], problems: Problems) -> None:
    check_top(recipe, problems)
    check_results(recipe.results, problems)
    # No section takes more models than this; to look for the nearest name of each takes a while.
    for key, model in islice(model_configs(recipe), 32):
        check_model(model, key, problems)
    check_data(recipe.data, problems)
    check_train(recipe.train, "TrainConfig", problems)
    for name in recipe.train.stages:
        general = {line.split(": ", 2)[2] for line in problems.found if ": TrainConfig." in line}
        stage = Problems(problems.source, problems.lines, problems.overridden)
        check_train(stage_train_config(recipe, name), f"TrainConfig.stages.{name}", stage)
        # What is already wrong in the general section is said once, there.
        problems.found += [line for line in stage.found if line.split(": ", 2)[2] not in general]
    check_target(recipe.target, problems)
    check_export(recipe.export, problems)
    check_combination(recipe.strategies, registry, problems)
