"""Search spaces: what is refused before anything runs, and what a point makes of a recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from act.errors import InputError
from act.recipe.coerce import Problems
from act.recipe.load import load_recipe, recipe_from_dict
from act.recipe.schema import Recipe
from act.search.dimension import Dimension, read_dimension
from act.search.space import Space, changed, read_space


@pytest.fixture(scope="module")
def base() -> Recipe:
    return load_recipe("quickstart")


def space_of(tmp_path: Path, text: str, base: Recipe) -> Space:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return read_space(path, base)


def test_a_space_with_every_form(tmp_path: Path, base: Recipe) -> None:
    space = space_of(
        tmp_path,
        "Prune.criterion: {choice: [magnitude, wanda, sparsegpt]}\n"
        "Quantization.weight_bits: {int: [4, 8], step: 2}  # ACT's name of QuantAware\n"
        "TrainConfig.stages.QuantAware.learning_rate: {float: [1e-5, 1e-3], log: true}\n"
        "data.augment.shift: {int: [0, 3]}\n"
        "TrainConfig.ema_decay: {choice: [null, 0.99]}\n",
        base,
    )
    assert [item.size for item in space.dimensions] == [3, 3, math.inf, 4, 2]
    assert space.dimensions[1].key == "QuantAware.weight_bits"
    point = {
        "Prune.criterion": "wanda",
        "QuantAware.weight_bits": 6,
        "TrainConfig.stages.QuantAware.learning_rate": 3e-4,
        "data.augment.shift": 1,
        "TrainConfig.ema_decay": 0.99,
    }
    recipe = space.recipe(point)
    assert recipe.strategies["Prune"].criterion == "wanda" and recipe.strategies["Prune"].pattern == "2:4"
    assert recipe.strategies["QuantAware"].weight_bits == 6 and recipe.data.augment.shift == 1
    assert recipe.train.stages["QuantAware"] == {"epochs": 1, "learning_rate": 3e-4}
    assert recipe.train.ema_decay == 0.99 and recipe.results == {}
    # The recipe itself is the first trial, as far as it lies in the space.
    assert space.start() == {
        "Prune.criterion": "magnitude",
        "QuantAware.weight_bits": 8,
        "TrainConfig.stages.QuantAware.learning_rate": 2e-4,
        "data.augment.shift": 2,
        "TrainConfig.ema_decay": None,
    }


BAD = {
    "unknown key": ("Prune.patern: {choice: ['2:4', '1:4']}", "1: Prune.patern: unknown key (did you mean pattern?)"),
    "unknown section": ("Prun.pattern: {choice: [a, b]}", "1: Prun: unknown section (did you mean Prune?)"),
    "refused value": ("QuantAware.weight_bits: {choice: [8, 99]}", "1: QuantAware.weight_bits: 99"),
    "refused end of a range": ("QuantAware.weight_bits: {int: [1, 8]}", "1: QuantAware.weight_bits: 1"),
    "wrong type": ("QuantAware.use_pact: {choice: [true, 3]}", "1: QuantAware.use_pact: expected true or false, got 3"),
    "floats for a whole number": ("TrainConfig.epochs: {float: [1, 4]}", "expected a whole number"),
    "no mapping": ("seed: [1, 2]", "1: seed: expected the values to try, got [1, 2]; allowed: {choice: "),
    "no kind": ("seed: {step: 2}", "1: seed: has none of choice, int, float"),
    "misspelt kind": ("seed: {choise: [1, 2]}", "did you mean choice?"),
    "two kinds": ("seed: {choice: [1, 2], int: [1, 2]}", "1: seed: has both choice and int"),
    "unknown option": ("seed: {int: [1, 2], stp: 1}", "1: seed.stp: unknown key (did you mean step?)"),
    "empty choice": ("seed: {choice: []}", "1: seed: choice: []; allowed: a list of two values or more"),
    "single choice": ("seed: {choice: [1]}", "choice: [1]; allowed"),
    "repeated choice": ("seed: {choice: [1, 2, 1]}", "1: seed: choice: 1 is given twice"),
    "empty range": ("seed: {int: [5, 5]}", "1: seed: int: [5, 5] is empty"),
    "range upside down": ("TrainConfig.learning_rate: {float: [1e-3, 1e-5]}", "is empty; allowed: LOW below HIGH"),
    "range of one": ("seed: {int: [5]}", "1: seed: int: [5]; allowed: [LOW, HIGH]"),
    "range of text": ("seed: {int: [a, 2]}", "1: seed.int: expected a whole number, got 'a'"),
    "log of zero": ("TrainConfig.learning_rate: {float: [0, 1e-3], log: true}", "log: true from 0"),
    "log and step": ("seed: {int: [1, 9], step: 2, log: true}", "log and step exclude each other"),
    "step that misses": ("seed: {int: [1, 8], step: 2}", "1: seed.step: 2 does not lead from 1 to 8"),
    "step too fine": ("QuantAware.outlier_ratio: {float: [0, 1], step: 1.0e-30}", "makes more than 1e+15 steps"),
    "range too wide": ("QuantAware.outlier_ratio: {float: [0, 1e+308], step: 1e+10}", "makes more than 1e+15 steps"),
    "step too large": ("seed: {int: [1, 8], step: 20}", "1: seed.step: 20; allowed: above 0, up to 7"),
    "the goal": (
        "target.max_drop: {choice: [1.0, 2.0]}",
        "1: target.max_drop: cannot be searched over: target is what",
    ),
    "the yardstick": ("data.limit_val: {choice: [10, 20]}", "cannot be searched over: data.limit_val is what"),
    "a whole section": ("TrainConfig: {choice: [{}, {epochs: 1}]}", "1: TrainConfig: a whole section"),
    "code": ("model._target_: {choice: [a, b]}", "1: model._target_: would run code"),
    "environment": ("name.x: {choice: ['${oc.env:HOME}', b]}", "1: name.x: cannot be searched over"),
    "interpolation": ("TrainConfig.scheduler: {choice: ['${oc.env:HOME}', linear]}", "interpolations"),
    "given twice": ("QuantAware.weight_bits: {choice: [4, 8]}\nQuantization.weight_bits: {choice: [4, 8]}", "2: Quant"),
    "empty dotted part": ("Prune..pattern: {choice: [a, b]}", "1: Prune..pattern: not a dotted key"),
    "a contradiction": ("QuantPost: {choice: [{}, {weight_bits: 4}]}", "1: QuantAware: contradicts QuantPost"),
    "empty file": ("", "empty; a space names the values to try"),
    "a list": ("- seed", "found a list; a space names the values to try"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_space_is_one_line(name: str, tmp_path: Path, base: Recipe) -> None:
    text, expected = BAD[name]
    with pytest.raises(InputError) as caught:
        space_of(tmp_path, text, base)
    assert any(expected in line for line in caught.value.problems), caught.value.problems
    assert all(line.startswith(str(tmp_path / "space.yaml")) and "\n" not in line for line in caught.value.problems)


def test_all_problems_come_at_once_in_the_order_of_the_file(tmp_path: Path, base: Recipe) -> None:
    text = "seed: {int: [2, 1]}\nPrune.patern: {choice: [a, b]}\nTrainConfig.epochs: {choice: [1, -3]}\n"
    with pytest.raises(InputError) as caught:
        space_of(tmp_path, text, base)
    assert [line.split(":")[1] for line in caught.value.problems] == ["1", "2", "3"]


def test_no_such_file(base: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--space: .*no\.yaml: no such file"):
        read_space(tmp_path / "no.yaml", base)


def test_paths_start_at_the_folder_of_the_space(tmp_path: Path, base: Recipe) -> None:
    (tmp_path / "few").mkdir()
    space = space_of(tmp_path, "data.calibration: {choice: [few, builtin:digits.tar/train]}\n", base)
    chosen = [space.recipe({"data.calibration": value}).data.calibration for value in space.dimensions[0].choices]
    assert chosen[0] == str(tmp_path / "few") and str(chosen[1]).endswith("digits.tar/train")
    with pytest.raises(InputError, match=r"space.yaml:1: data.calibration: none: no such .* \(looked in .*paths_start"):
        space_of(tmp_path, "data.calibration: {choice: [few, none]}\n", base)


def test_off_leaves_a_strategy_out_with_all_that_belongs_to_it(tmp_path: Path, base: Recipe) -> None:
    text = (
        "QuantAware: {choice: [off, {}]}\nQuantPost: {choice: [off, {weight_bits: 4}]}\n"
        "QuantAware.weight_bits: {choice: [4, 8]}\nTrainConfig.stages.QuantAware.epochs: {choice: [1, 2]}\n"
    )
    # QuantPost contradicts the recipe's QuantAware, but not where that is off.
    space = space_of(tmp_path, text, base)
    rest = {"QuantAware.weight_bits": 4, "TrainConfig.stages.QuantAware.epochs": 2}
    post = space.recipe({"QuantAware": "off", "QuantPost": {"weight_bits": 4}, **rest})
    assert set(post.strategies) == {"Distillation", "Prune", "QuantPost"} and post.train.stages == {}
    aware = space.recipe({"QuantAware": {}, "QuantPost": "off", **rest})
    assert set(aware.strategies) == {"Distillation", "Prune", "QuantAware"}
    assert aware.strategies["QuantAware"].weight_bits == 4 and aware.train.stages["QuantAware"]["epochs"] == 2
    with pytest.raises(InputError, match="contradicts"):
        space.recipe({"QuantAware": {}, "QuantPost": {}, **rest})
    assert space.start()["QuantPost"] == "off"


def test_a_recipe_leaves_the_space_as_it_is(tmp_path: Path, base: Recipe) -> None:
    text = (
        "QuantPost: {choice: [off, {weight_bits: 4}]}\nQuantPost.images: {choice: [8, 16]}\n"
        "QuantAware: {choice: [off, {}]}\n"
    )
    space = space_of(tmp_path, text, base)
    point = {"QuantAware": "off", "QuantPost": space.dimensions[0].choices[1], "QuantPost.images": 16}
    assert space.recipe(point).strategies["QuantPost"].images == 16
    assert space.dimensions[0].choices[1] == {"weight_bits": 4}


def test_a_list_as_a_value_survives_the_way_through_optuna(tmp_path: Path, base: Recipe) -> None:
    pytest.importorskip("optuna")
    text = "QuantAware.quantize_op_types: {choice: [[linear], [linear, matmul]]}\n"
    space = space_of(tmp_path, text, base)
    (distribution,) = space.distributions().values()
    points = [space.point({"QuantAware.quantize_op_types": choice}) for choice in distribution.choices]
    assert [next(iter(point.values())) for point in points] == [["linear"], ["linear", "matmul"]]
    assert changed(base, points[1], "x").strategies["QuantAware"].quantize_op_types == ["linear", "matmul"]


@st.composite
def ranges(draw: Any) -> dict[str, Any]:
    if draw(st.booleans()):
        low, step = draw(st.integers(-50, 50)), draw(st.integers(1, 7))
        return {"int": [low, low + step * draw(st.integers(1, 20))], "step": step}
    low = draw(st.floats(1e-6, 1e3))
    return {"float": [low, low * draw(st.floats(1.5, 1e3))], "log": draw(st.booleans())}


@settings(deadline=None, max_examples=60)
@given(ranges())
def test_every_example_of_a_range_lies_in_it_as_optuna_sees_it(values: dict[str, Any]) -> None:
    optuna = pytest.importorskip("optuna")
    problems = Problems("x")
    dimension = read_dimension("key", values, problems)
    assert isinstance(dimension, Dimension) and not problems.found
    distribution = dimension.distribution()
    for value in dimension.examples():
        assert dimension.value(dimension.parameter(value)) == value
    proposed = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=proposed)
    for _ in range(3):
        assert dimension.parameter(study.ask({"key": distribution}).params["key"]) is not None
    for outside in (dimension.low - 1, dimension.high + 1, "a", True):
        with pytest.raises(KeyError):
            dimension.parameter(outside)


def test_a_recipe_without_strategies_can_get_one(tmp_path: Path) -> None:
    base = recipe_from_dict({"model": {"name": "vit_tiny_patch16_224"}})
    space = space_of(tmp_path, "QuantPost.weight_bits: {choice: [4, 8]}\n", base)
    assert space.recipe({"QuantPost.weight_bits": 4}).strategies["QuantPost"].weight_bits == 4
    assert space.start() == {}
