"""Whatever a file or command line holds, loading gives an InputError or a recipe that survives a round trip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from act.errors import InputError
from act.recipe import text
from act.recipe.compose import groups
from act.recipe.load import SECTIONS, dump_recipe, load_recipe, recipe_from_dict, recipe_hash
from act.strategies.base import load_strategies

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = [
    *load_strategies(),
    *SECTIONS,
    "defaults",
    "name",
    "seed",
    "results",
    "ASPPrune",
    "Global",
    "_target_",
    "hydra",
]
KEYS = [
    "node",
    "pattern",
    "weight_bits",
    "learning_rate",
    "stages",
    "train",
    "mean",
    "teacher",
    "name",
    "optimizer_builder",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        ["auto", "2:4", "${oc.env:HOME}", "???", "*", "1e-5", "builtin:digits.tar/train", "cosine", "adamw"]
    )
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


def check(folder: Path, content: bytes, *overrides: str) -> None:
    path = folder / "r.yaml"
    path.write_bytes(content)
    try:
        recipe = load_recipe(path, overrides)
    except InputError as error:
        assert error.problems and all(problem.strip() and "\n" not in problem for problem in error.problems)
        return
    again = recipe_from_dict(text.parse(dump_recipe(recipe), "dump").values)
    assert again == recipe and recipe_hash(again) == recipe_hash(recipe)


@QUICK
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes(content: bytes, tmp_path: Path) -> None:
    check(tmp_path, content)


@QUICK
@given(content=st.text(alphabet="abP:{}[],-&*!|>'\"#?%@` \n\t0123456789.$<~", max_size=80))
def test_text_made_of_yaml(content: str, tmp_path: Path) -> None:
    check(tmp_path, content.encode())


@QUICK
@given(
    tree=st.dictionaries(
        st.sampled_from(NAMES), st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4) | VALUES, max_size=5
    )
)
def test_recipe_shaped_trees(tree: dict[str, Any], tmp_path: Path) -> None:
    check(tmp_path, text.dump(tree).encode("utf-8", "surrogatepass"))


@QUICK
@given(data=st.data())
def test_sections_with_their_own_fields(data: st.DataObject, tmp_path: Path) -> None:
    """Right keys with wrong values: the typed checks and each strategy's own."""
    import dataclasses

    registry = load_strategies()
    name = data.draw(st.sampled_from([*registry, *SECTIONS]))
    cls = registry[name].Config if name in registry else SECTIONS[name][1]
    fields = [field.name for field in dataclasses.fields(cls)]
    section = data.draw(st.dictionaries(st.sampled_from(fields), VALUES, min_size=1, max_size=4))
    check(
        tmp_path, text.dump({"model": {"name": "vit_tiny_patch16_224"}, name: section}).encode("utf-8", "surrogatepass")
    )


@QUICK
@given(
    words=st.lists(
        st.text(max_size=20) | st.sampled_from(["Prune.pattern=1:4", "~Prune", "Prune=2to4", "a=[", "=", "+x=1"]),
        max_size=3,
    )
)
def test_any_command_line(words: list[str], tmp_path: Path) -> None:
    check(tmp_path, b"model: {name: vit_tiny_patch16_224}\nPrune: {}\n", *words)


@given(defaults=VALUES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_defaults_list(defaults: Any, tmp_path: Path) -> None:
    check(
        tmp_path,
        text.dump({"model": {"name": "vit_tiny_patch16_224"}, "defaults": defaults}).encode("utf-8", "surrogatepass"),
    )


@given(chosen=st.sets(st.sampled_from(["Prune", "QuantAware", "Distillation"]), min_size=1), data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_combination_of_groups_loads_in_any_order(chosen: set[str], data: st.DataObject) -> None:
    order = data.draw(st.permutations(sorted(chosen)))
    entries = [{group: data.draw(st.sampled_from(groups()[group]))} for group in order]
    recipe = recipe_from_dict({"model": {"name": "vit_tiny_patch16_224"}, "defaults": [*entries, "_self_"]})
    assert set(recipe.strategies) == chosen


@pytest.mark.parametrize("length", [1, 10, 100, 1000])
def test_a_recipe_cut_short_anywhere(length: int, tmp_path: Path) -> None:
    from act.recipe.paths import find_recipe

    check(tmp_path, find_recipe("quickstart").read_bytes()[:length])
