"""Recipes that are right: what is read is what was written."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from act.errors import InputError
from act.recipe import text
from act.recipe.compose import groups
from act.recipe.load import dump_recipe, load_recipe, recipe_from_dict, recipe_hash, stage_train_config
from act.recipe.paths import asset, configs_dir, find_recipe, list_recipes
from act.recipe.references import portable
from act.recipe.schema import Recipe

MODEL = "model: {name: vit_tiny_patch16_224}\n"


def write(folder: Path, body: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_text(dedent(body), encoding="utf-8")
    return path


def load(folder: Path, body: str, *overrides: str) -> Recipe:
    return load_recipe(write(folder, body), overrides)


@pytest.mark.parametrize(
    ("written", "value"),
    [("2e-4", 2e-4), ("1e-5", 1e-5), ("1", 1.0), (".5", 0.5), ("1.", 1.0), ("+3E-2", 0.03), ("0.001", 0.001)],
)
def test_numbers_are_read_as_numbers(tmp_path: Path, written: str, value: float) -> None:
    recipe = load(tmp_path, f"{MODEL}TrainConfig: {{learning_rate: {written}}}\n")
    assert recipe.train.learning_rate == value and isinstance(recipe.train.learning_rate, float)
    assert load(tmp_path, MODEL, f"TrainConfig.learning_rate={written}").train.learning_rate == value


def test_scalars_follow_yaml_1_2() -> None:
    body = "a: 2:4\nb: on\nc: 1_000\nd: 0o17\ne: 0x1F\nf: '1e-5'\ng: 2024-01-02\nh: ~\ni: TRUE\nj: 017\nk: -.inf\n"
    values = text.parse(body, "x").values
    assert values == {
        "a": "2:4",
        "b": "on",
        "c": "1_000",
        "d": 15,
        "e": 31,
        "f": "1e-5",
        "g": "2024-01-02",
        "h": None,
        "i": True,
        "j": 17,
        "k": float("-inf"),
    }


def test_order_of_sections_does_not_matter(tmp_path: Path) -> None:
    sections = ["Prune: {}\n", "QuantAware: {weight_bits: 4}\n", "Distillation: {}\n", MODEL]
    one = load(tmp_path, "".join(sections))
    other = load(tmp_path, "".join(reversed(sections)))
    assert one == other and recipe_hash(one) == recipe_hash(other)


def test_a_bare_section_switches_its_strategy_on(tmp_path: Path) -> None:
    recipe = load(tmp_path, f"{MODEL}Prune:\n")
    assert list(recipe.strategies) == ["Prune"] and recipe.strategies["Prune"].pattern == "2:4"


def test_overrides_reach_every_key(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        MODEL,
        "QuantAware.weight_bits=4",
        "Distillation.node=[blocks.11, head]",
        "Prune.pattern=1:4",
        "model.kwargs={img_size: 64, dynamic_img_size: true}",
        "++data.mean=[0.5]",
        "description='two words, and = and :'",
        "target.max_drop=null",
        "TrainConfig.stages.Prune.epochs=3",
        "export.formats=[]",
        "export.formats=[onnx]",
    )
    assert recipe.strategies["QuantAware"].weight_bits == 4
    assert recipe.strategies["Distillation"].node == ["blocks.11", "head"]
    assert recipe.strategies["Prune"].pattern == "1:4"
    assert recipe.model.kwargs == {"img_size": 64, "dynamic_img_size": True}
    assert recipe.data.mean == [0.5]
    assert recipe.description == "two words, and = and :"
    assert recipe.target.max_drop is None
    assert recipe.train.stages == {"Prune": {"epochs": 3}}
    assert recipe.export.formats == ["onnx"]


def test_a_mapping_is_merged_by_an_override(tmp_path: Path) -> None:
    recipe = load(tmp_path, f"{MODEL}Prune: {{align: 8}}\n", "Prune={pattern: '1:4'}")
    assert (recipe.strategies["Prune"].align, recipe.strategies["Prune"].pattern) == (8, "1:4")


def test_groups_come_below_the_recipe_body_and_above_when_named_after_it(tmp_path: Path) -> None:
    body = "defaults: [{Prune: 2to4_srste}%s]\n" + MODEL + "Prune: {mask: fixed}\n"
    below = load(tmp_path, body % "").strategies["Prune"]
    above = load(tmp_path, body.replace("[{", "[_self_, {") % "").strategies["Prune"]
    assert (below.mask, above.mask) == ("fixed", "sr-ste")
    assert below.freeze_after == above.freeze_after == 0.8


def test_command_line_chooses_removes_and_replaces_groups(tmp_path: Path) -> None:
    body = f"defaults: [{{Prune: 2to4_srste}}, {{QuantAware: int8}}]\n{MODEL}"
    body += "TrainConfig: {stages: {Prune: {epochs: 2}}}\n"
    assert load(tmp_path, body, "Prune=2to4").strategies["Prune"].mask == "fixed"
    assert "QuantPost" in load(tmp_path, body, "QuantPost=int8", "~QuantAware").strategies
    left = load(tmp_path, body, "~Prune")
    assert list(left.strategies) == ["QuantAware"] and left.train.stages == {}


def test_results_and_defaults_can_be_removed(tmp_path: Path) -> None:
    body = f"defaults: [{{Prune: 2to4}}]\n{MODEL}results: {{onnx: {{top1: 96.1}}}}\ndescription: x\n"
    assert load(tmp_path, body).results and "Prune" in load(tmp_path, body).strategies
    bare = load(tmp_path, body, "~results", "~description", "~defaults")
    assert bare.results == {} and bare.description == "" and bare.strategies == {}


def test_groups_are_found_in_a_folder_with_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "jos\u00e9 [x], 'y'"
    shutil.copytree(configs_dir(), folder / "configs")
    monkeypatch.setattr("act.recipe.compose.configs_dir", lambda: folder / "configs")
    assert load(tmp_path, MODEL, "Prune=2to4").strategies["Prune"].pattern == "2:4"


def test_every_group_option_is_a_valid_section(tmp_path: Path) -> None:
    known = groups()
    assert {"Prune", "QuantAware", "QuantPost", "Distillation", "TrainConfig"} <= set(known)
    for group, options in known.items():
        assert options, f"configs/{group} is empty"
        for option in options:
            recipe = load(tmp_path, f"defaults: [{{{group}: {option}}}]\n{MODEL}")
            written = yaml.safe_load((configs_dir() / group / f"{option}.yaml").read_text())
            section = recipe.train if group == "TrainConfig" else recipe.strategies[group]
            loaded = dataclasses.asdict(section)
            # Compared as numbers where the stock YAML reader takes 2e-4 for text.
            assert {key: type(loaded[key])(value) for key, value in written.items()} == {
                key: loaded[key] for key in written
            }


def test_values_of_any_type_survive_composition(tmp_path: Path) -> None:
    """Text that looks like something else stays text when groups are merged in."""
    odd = "{a: '1e-5', b: 'on', c: 'null', d: '2024-01-02', e: '', f: [1, 2.5, true, null], g: 'x: y'}"
    body = f"defaults: [{{Prune: 2to4}}]\nmodel: {{name: vit_tiny_patch16_224, kwargs: {odd}}}\n"
    with_groups = load(tmp_path, body).model.kwargs
    assert with_groups == load(tmp_path, body.split("\n", 1)[1]).model.kwargs
    assert with_groups["a"] == "1e-5" and with_groups["f"] == [1, 2.5, True, None]


@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda path: path.stem)
def test_shipped_recipes_load_and_survive_a_round_trip(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(recipe)
    written = dump_recipe(loaded)
    again = load_recipe(write(tmp_path, written))
    assert again == loaded and recipe_hash(again) == recipe_hash(loaded) and dump_recipe(again) == written
    assert recipe_from_dict(yaml.safe_load(written)).strategies.keys() == loaded.strategies.keys()


def test_hash_ignores_names_and_results_and_the_machine_but_nothing_else(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "images").mkdir(parents=True)
    body = f"{MODEL}Prune: {{}}\ndata: {{train: images}}\n"
    one = load_recipe(write(tmp_path / "one", body))
    two = load_recipe(write(tmp_path / "two", f"{body}description: other\nname: other\nresults: {{top1: 3}}\n"))
    assert one.data.train != two.data.train
    assert recipe_hash(one) == recipe_hash(two)
    for change in ("Prune.pattern=1:4", "seed=1", "TrainConfig.learning_rate=3e-4", "QuantPost={}", "data.workers=0"):
        assert recipe_hash(load_recipe(tmp_path / "one" / "r.yaml", [change])) != recipe_hash(one), change


def test_hash_of_a_written_default_equals_that_of_an_unwritten_one(tmp_path: Path) -> None:
    short = load(tmp_path, f"{MODEL}Prune: {{}}\n")
    assert recipe_hash(short) == recipe_hash(load(tmp_path, f"{MODEL}Prune: {{pattern: '2:4'}}\nseed: 0\n"))


def test_stage_training_overrides(tmp_path: Path) -> None:
    body = """\
        model: {name: vit_tiny_patch16_224}
        Prune: {}
        QuantAware: {}
        TrainConfig: {epochs: 3, learning_rate: 1e-3, stages: {Quantization: {train_iter: 50, learning_rate: 1}}}
        """
    recipe = load(tmp_path, body)
    prune, quant = stage_train_config(recipe, "Prune"), stage_train_config(recipe, "QuantAware")
    assert (prune.epochs, prune.train_iter, prune.learning_rate) == (3, None, 1e-3)
    assert (quant.epochs, quant.train_iter, quant.learning_rate) == (None, 50, 1.0)
    assert prune.stages == quant.stages == {}


def test_paths_start_at_the_recipe_then_at_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("beside/images", "current/images", "current/only"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "current")
    path = write(tmp_path / "beside", f"{MODEL}data: {{train: images, val: only}}\n")
    data = load_recipe(path).data
    assert data.train == str(tmp_path / "beside/images") and data.val == str(tmp_path / "current/only")


@pytest.mark.parametrize("value", ["wds/**x/a.tar", "wds/~nobody-of-this-name/a.tar", f"wds/{'a' * 5000}"])
def test_any_text_may_follow_wds(value: str, tmp_path: Path) -> None:
    assert load(tmp_path, f"{MODEL}data: {{train: '{value}'}}\n").data.train == value


def test_the_hash_has_no_folder_of_shards(tmp_path: Path) -> None:
    hashes = set()
    for name in ("here", "there"):
        (tmp_path / name / "shards").mkdir(parents=True)
        recipe = load(tmp_path / name, f"{MODEL}data: {{train: wds/shards}}\n")
        assert recipe.data.train == f"wds/{tmp_path / name / 'shards'}" and portable(recipe.data.train) == "wds/shards"
        hashes.add(recipe_hash(recipe))
    assert len(hashes) == 1


def test_folder_inside_a_tar_and_builtin(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"")
    recipe = load(tmp_path, f"{MODEL}data: {{train: x.tar/train, val: builtin:digits.tar/val}}\n")
    assert recipe.data.train == str(tmp_path / "x.tar/train") and recipe.data.val == "builtin:digits.tar/val"
    with_checkpoint = load(tmp_path, MODEL, "model.checkpoint=builtin:digits_vit.safetensors")
    assert with_checkpoint.model.checkpoint == str(asset("digits_vit.safetensors"))
    assert "checkpoint: builtin:digits_vit.safetensors" in dump_recipe(with_checkpoint)


def test_teacher_models_are_typed_and_their_checkpoints_found(tmp_path: Path) -> None:
    (tmp_path / "t.safetensors").write_bytes(b"")
    body = f"{MODEL}Distillation: {{teacher: [{{name: deit_tiny_patch16_224, checkpoint: t.safetensors}}]}}\n"
    teacher = load(tmp_path, body).strategies["Distillation"].teacher[0]
    assert teacher.checkpoint == str(tmp_path / "t.safetensors")
    with pytest.raises(InputError, match=r"teacher\[0\].checkpoint: x.pt: no such file"):
        load(tmp_path, body.replace("t.safetensors", "x.pt"))


def test_recipes_are_found_by_name() -> None:
    assert find_recipe("quickstart").name == "quickstart.yaml"
    with pytest.raises(InputError, match=r"did you mean quickstart\?"):
        find_recipe("quickstat")


def test_dict_recipe_equals_the_file(tmp_path: Path) -> None:
    values = {"model": {"name": "vit_tiny_patch16_224"}, "Prune": None, "data": {"input_size": (3, 64, 64)}}
    body = f"{MODEL}Prune:\ndata: {{input_size: [3, 64, 64]}}\nname: recipe\n"
    assert recipe_from_dict(values) == load(tmp_path, body)


def test_dump_quotes_text_that_would_be_read_as_something_else() -> None:
    values = {
        "a": "1e-5",
        "b": "yes",
        "c": "2:4",
        "d": "0o7",
        "e": 1e-5,
        "f": "",
        "g": "null",
        "h": ["- x", "#"],
        "i": "12",
    }
    assert text.parse(text.dump(values), "x").values == values
    assert {key: yaml.safe_load(text.dump(values))[key] for key in "bcfghi"} == {key: values[key] for key in "bcfghi"}
