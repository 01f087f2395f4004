"""Recipes that are wrong: one line per problem, saying what, where and what is allowed; nothing is executed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from act.errors import InputError
from act.recipe import text
from act.recipe.load import load_recipe, recipe_from_dict

M = "model: {name: vit_tiny_patch16_224}\n"
BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
LONG = "9" * 5000


def problems_of(folder: Path, body: str | bytes, *overrides: str) -> list[str]:
    path = folder / "r.yaml"
    path.write_bytes(body if isinstance(body, bytes) else body.encode())
    with pytest.raises(InputError) as caught:
        load_recipe(path, overrides)
    assert caught.value.problems
    for problem in caught.value.problems:
        assert "\n" not in problem and len(problem) < 900
        assert problem.startswith((str(path), "command line: ")), problem
    return caught.value.problems


# (what is written, parts of one problem line)
TEXTS: dict[str, tuple[str | bytes, list[str]]] = {
    "empty": ("", ["empty"]),
    "comments only": ("# nothing\n\n", ["empty"]),
    "null": ("~\n", ["empty"]),
    "a list": ("- model\n", ["expected `section: ...` lines", "a list"]),
    "a word": ("hello\n", ["a single value"]),
    "binary": (b"\x00\x01\x02\xff", ["not UTF-8 text"]),
    "zero bytes": (b"model: 1\0\n", ["binary"]),
    "control characters": (b"model: \x07\n", [":1: ", "U+0007"]),
    "latin-1": ("description: é\n".encode("latin-1"), ["not UTF-8"]),
    "huge": ("x: 1\n" * 100_000, ["larger than 128 KiB"]),
    "deep in braces": ("a: " + "{a: " * 300, [":1: ", "nested more than 16"]),
    "deep in brackets": ("a: " + "[" * 2000, ["nested more than 16"]),
    "deep by indentation": ("".join(" " * i + "a:\n" for i in range(40)), ["nested more than 16"]),
    "alias bomb": (BOMB, [":1: ", "anchors and aliases"]),
    "unquoted star": (M + "Prune: {include: [*]}\n", [":2: ", "not valid YAML"]),
    "merge key": ("<<: {name: x}\n", [":1: <<: unknown section"]),
    "python tag": ("a: !!python/object/apply:os.system [ls]\n", ["tag", "not allowed"]),
    "own tag": ("a: !x 1\n", ["tag '!x'"]),
    "duplicate section": (M + "Prune: {}\nPrune: {}\n", [":3: Prune: given twice (first on line 2)"]),
    "duplicate key": (M + "Prune:\n  align: 8\n  align: 4\n", [":4: Prune.align: given twice (first on line 3)"]),
    "tab": (M + "Prune:\n\talign: 8\n", [":3: ", "a tab where spaces are due"]),
    "unclosed": ("model: {name: x\n", ["not valid YAML"]),
    "two documents": ("a: 1\n---\nb: 1\n", ["more than one document"]),
    "list as key": ("? [a, b]\n: 1\n", [":1: ", "used as a key"]),
    "endless number": (f"seed: {LONG}\n", [":1: seed", "too long"]),
}
VALUES: dict[str, tuple[str, list[str]]] = {
    "unknown section": ("Prun: {}\n", [":2: Prun: unknown section (did you mean Prune?)", "QuantAware"]),
    "section in other case": ("trainconfig: {}\n", ["did you mean TrainConfig?"]),
    "unknown key": (
        "QuantAware: {weight_bit: 8}\n",
        [":2: QuantAware.weight_bit: unknown key (did you mean weight_bits?)"],
    ),
    "dotted key": ("data.train: x\n", ["data.train: unknown section"]),
    "text for a number": ("QuantAware: {weight_bits: eight}\n", ["expected a whole number, got 'eight'"]),
    "quoted number": ("TrainConfig: {learning_rate: '2e-4'}\n", ["remove the quotes"]),
    "fraction for a count": ("TrainConfig: {epochs: 1.5}\n", ["TrainConfig.epochs: expected a whole number, got 1.5"]),
    "number for text": ("Prune: {pattern: 24}\n", ["expected text, got 24; put it in quotes"]),
    "number for a switch": ("QuantAware: {use_pact: 1}\n", ["expected true or false, got 1"]),
    "yes for a switch": ("QuantAware: {use_pact: yes}\n", ["expected true or false, got 'yes'"]),
    "None for null": ("TrainConfig: {epochs: None}\n", ["write null"]),
    "one value for a list": ("data: {mean: 0.5}\n", ["data.mean: expected a list of numbers, got 0.5; write [0.5]"]),
    "mapping for a list": ("export: {formats: {onnx: 1}}\n", ["expected a list of texts"]),
    "wrong item": ("data: {mean: [0.5, x, 1]}\n", ["data.mean[1]: expected a number, got 'x'"]),
    "null for a number": ("data: {batch_size: null}\n", ["data.batch_size: expected a whole number, got null"]),
    "list for a section": ("Prune: [1]\n", ["Prune: expected a mapping", "pattern"]),
    "number for a section": ("data: 3\n", ["data: expected a mapping, got 3"]),
    "number for augment": ("data: {augment: 1}\n", ["data.augment: expected a mapping"]),
    "NaN": ("TrainConfig: {learning_rate: .nan}\n", ["TrainConfig.learning_rate: nan is not a usable number"]),
    "infinity": ("TrainConfig: {weight_decay: .inf}\n", ["inf is not a usable number"]),
    "overflow": ("TrainConfig: {weight_decay: 1e999}\n", ["inf is not a usable number"]),
    "number too large": (f"seed: {'9' * 400}\n", ["seed: a number too large"]),
    "number too large to print": (f"data: 0x{'f' * 5000}\n", ["data: a number too large"]),
    "too large as a float": ("Prune: {images: 1e300}\n", ["Prune.images: a number too large"]),
    "list for a schedule": ("TrainConfig: {learning_rate: {type: [x]}}\n", ["the schedule ['x'] has no counterpart"]),
    "unknown file format": ("export: {formats: [onnx, coreml]}\n", ["export.formats: coreml; allowed: onnx"]),
    "no main file": ("export: {formats: [openvino]}\n", ["export.formats: openvino; add onnx"]),
    "unknown tag of weights": ("model: {name: vit_tiny_patch16_224.x}\n", ["no model 'vit_tiny_patch16_224.x'"]),
    "model of the hub": ("model: {name: 'hf-hub:someone/vit'}\n", ["model.name", "no model 'hf-hub:someone/vit'"]),
    "endless class map": (f"data: {{class_map: {'a' * 5000}}}\n", ["data.class_map", "no such file"]),
    "endless asset": (f"data: {{train: 'builtin:{'a' * 5000}'}}\n", ["data.train", "no such embedded asset"]),
    "negative epochs": ("TrainConfig: {epochs: -1}\n", ["TrainConfig.epochs: -1", "1 or more"]),
    "no learning rate": ("TrainConfig: {learning_rate: 0}\n", ["TrainConfig.learning_rate: 0"]),
    "epochs and train_iter": ("TrainConfig: {epochs: 1, train_iter: 9}\n", ["epochs", "leave one of them out"]),
    "unknown optimiser": ("TrainConfig: {optimizer: adamm}\n", ["TrainConfig.optimizer", "adam"]),
    "unknown tracker": ("TrainConfig: {trackers: [tensorbored]}\n", ["trackers: 'tensorbored'", "tensorboard"]),
    "negative tolerance": ("TrainConfig: {origin_tolerance: -1}\n", ["origin_tolerance: -1", "negative"]),
    "unknown schedule": ("TrainConfig: {scheduler: cos}\n", ["scheduler", "cosine, linear, constant"]),
    "unknown metric": ("TrainConfig: {metric: top5}\n", ["did you mean top1?"]),
    "stage that is not there": ("TrainConfig: {stages: {Prune: {}}}\n", ["stages.Prune: no stage of this recipe"]),
    "stage that does not train": ("QuantPost: {}\nTrainConfig: {stages: {QuantPost: {}}}\n", ["stages.QuantPost"]),
    "wrong stage value": (
        "Prune: {}\nTrainConfig:\n  stages:\n    Prune: {epochs: x}\n",
        [":5: TrainConfig.stages.Prune.epochs: expected a whole number"],
    ),
    "negative in a stage": (
        "Prune: {}\nTrainConfig: {stages: {Prune: {epochs: -2}}}\n",
        ["TrainConfig.stages.Prune.epochs: -2"],
    ),
    "nested stages": ("Prune: {}\nTrainConfig: {stages: {Prune: {stages: {}}}}\n", ["stages cannot be nested"]),
    "bits out of range": ("QuantAware: {weight_bits: 9}\n", ["QuantAware.weight_bits: 9; allowed: 2 to 8"]),
    "bad pattern": ("Prune: {pattern: '4:2'}\n", ["Prune.pattern:"]),
    "batch size 0": ("data: {batch_size: 0}\n", ["data.batch_size: 0 is out of range; allowed: 1 to"]),
    "negative workers": ("data: {workers: -1}\n", ["data.workers: -1"]),
    "crop_pct 0": ("data: {crop_pct: 0}\n", ["data.crop_pct: 0", "above 0"]),
    "two sizes": ("data: {crop_pct: 0.9, resize: 256}\n", ["leave one of them out"]),
    "odd input size": ("data: {input_size: [224, 224]}\n", ["[channels, height, width]"]),
    "zero std": ("data: {std: [0]}\n", ["data.std", "above 0"]),
    "unknown interpolation": ("data: {interpolation: cubic}\n", ["did you mean bicubic?"]),
    "crop of nothing": ("data: {augment: {scale: 0}}\n", ["data.augment.scale", "above 0, up to 1"]),
    "flip above 1": ("data: {augment: {hflip: 2}}\n", ["data.augment.hflip", "0 to 1"]),
    "missing folder": ("data: {train: nowhere}\n", ["data.train: nowhere: no such file or folder"]),
    "empty path": ("data: {train: ' '}\n", ["data.train"]),
    "path with a zero": ('data: {train: "a\\0b"}\n', ["data.train", "cannot be a path"]),
    "endless path": (f"data: {{train: {'a' * 5000}}}\n", ["data.train", "no such file or folder"]),
    "missing checkpoint": ("", ["model.checkpoint: x.pt: no such file"]),
    "unknown asset": ("data: {train: builtin:digit.tar}\n", ["did you mean builtin:digits.tar?"]),
    "asset outside": ("data: {val: builtin:../../etc}\n", ["not the name of an embedded asset"]),
    "unknown device": ("target: {device: gpu}\n", ["cpu, cuda"]),
    "negative drop": ("target: {max_drop: -1}\n", ["target.max_drop: -1"]),
    "old opset": ("export: {opset: 13}\n", ["export.opset: 13", "19"]),
    "no formats": ("export: {formats: []}\n", ["export.formats"]),
    "neither yes nor no": (
        "export: {pad_tokens: 8}\n",
        ["export.pad_tokens: 8 is unknown; allowed: auto, true, false"],
    ),
    "batch 0": ("export: {benchmark_batches: [1, 0]}\n", ["export.benchmark_batches[1]: 0"]),
    "unknown schema": ("schema: 2\n", ["schema: 2", "allowed: 1"]),
    "negative seed": ("seed: -1\n", ["seed: -1"]),
    "name with a path": ("name: ../x\n", ["name: '../x' cannot name a folder"]),
    "contradiction": ("QuantAware: {}\nQuantPost: {}\n", ["contradicts", "keep one of them"]),
    "alias twice": ("Prune: {}\nASPPrune: {}\n", ["is the same section as Prune"]),
    "unknown teacher": (
        "Distillation: {teacher: {name: vit_tinny_patch16_224}}\n",
        ["Distillation.teacher.name", "did you mean"],
    ),
    "a thousand teachers": (
        "Distillation:\n  teacher:\n" + "    - {name: vit_tiny_patch16_224}\n" * 1000,
        ["Distillation.teacher: 1000 teachers; at most 16"],
    ),
    # Nothing in a recipe may execute code or read the environment.
    "target": ("Prune: {_target_: os.system}\n", ["Prune._target_: would run code"]),
    "target deep inside": ("model: {kwargs: {a: [{_target_: os.system}]}}\n", ["_target_: would run code"]),
    "target as a section": ("_target_: os.system\n", ["_target_: would run code"]),
    "environment": ("data: {train: '${oc.env:HOME}'}\n", ["data.train", "interpolations and resolvers"]),
    "environment in results": ("results: {a: ['${oc.env:HOME}']}\n", ["results.a[0]", "not allowed"]),
    "interpolation": ("seed: ${data.batch_size}\n", ["seed", "not allowed"]),
    "interpolated key": ("results: {'${oc.env:HOME}': 1}\n", ["interpolation is not allowed"]),
    "missing marker": ("Prune: {pattern: '???'}\n", ["'???'"]),
    "hydra settings": ("hydra: {searchpath: [file:///etc]}\n", ["hydra: unknown section"]),
    "defaults of a file": ("defaults: [../../etc/passwd]\n", ["each entry is `Group: option`"]),
    "defaults out of the folder": (
        "defaults: [{Prune: ../QuantAware/int8}]\n",
        ["no option '../QuantAware/int8' in Prune"],
    ),
    "defaults for hydra": ("defaults: [{override hydra/launcher: x}]\n", ["no group"]),
    "unknown option": ("defaults: [{Prune: 2to5}]\n", ["no option '2to5' in Prune (did you mean 2to4?)"]),
    "unknown group": ("defaults: [{Prun: 2to4}]\n", ["no group 'Prun' (did you mean Prune?)"]),
    "group twice": ("defaults: [{Prune: 2to4}, {Prune: 2to4_srste}]\n", ["named twice"]),
    "defaults as text": ("defaults: 2to4\n", ["expected a list such as"]),
}
OVERRIDES: dict[str, tuple[str, list[str]]] = {
    "no equals sign": ("epochs", ["command line: epochs: not key=value"]),
    "unknown key": ("Prune.patern=1:4", ["command line: Prune.patern: unknown key (did you mean pattern?)"]),
    "unknown section": ("Prun.pattern=1:4", ["command line: Prun: unknown section"]),
    "unknown option": ("Prune=2to5", ["command line: Prune: no group '2to5' in configs/Prune (did you mean 2to4?)"]),
    "wrong type": ("TrainConfig.epochs=two", ["command line: TrainConfig.epochs: expected a whole number, got 'two'"]),
    "sweep": ("TrainConfig.epochs=1,2", ["is a sweep"]),
    "choice": ("TrainConfig.epochs=choice(1,2)", ["is a sweep"]),
    "environment": ("data.train=${oc.env:HOME}", ["interpolations and resolvers"]),
    "target": ("Prune._target_=os.system", ["would run code"]),
    "into a value": ("seed.x=1", ["seed is 0, which has no keys"]),
    "remove a key": ("~Prune.pattern", ["only a whole section can be removed"]),
    "remove what is misspelled": ("~Prnue", ["command line: Prnue: unknown section (did you mean Prune?)"]),
    "digits": (f"seed={'9' * 5000}", ["command line: seed=999", "not key=value"]),
    "nested": ("seed=" + "[" * 500 + "]" * 500, ["command line: seed=[[[", "not key=value"]),
    "unbalanced": ("data.mean=[1", ["not key=value"]),
    "not a number": ("TrainConfig.learning_rate=nan", ["nan is not a usable number"]),
}


@pytest.mark.parametrize("case", TEXTS)
def test_text(case: str, tmp_path: Path) -> None:
    body, parts = TEXTS[case]
    found = problems_of(tmp_path, body)
    assert any(all(part in problem for part in parts) for problem in found), found


@pytest.mark.parametrize("case", VALUES)
def test_values(case: str, tmp_path: Path) -> None:
    body, parts = VALUES[case]
    model = "model: {name: vit_tiny_patch16_224, checkpoint: x.pt}\n" if case == "missing checkpoint" else M
    found = problems_of(tmp_path, body if body.startswith("model:") else model + body)
    assert any(all(part in problem for part in parts) for problem in found), found
    assert len(found) <= 2, found


@pytest.mark.parametrize("case", OVERRIDES)
def test_overrides(case: str, tmp_path: Path) -> None:
    word, parts = OVERRIDES[case]
    found = problems_of(tmp_path, M + "seed: 0\nPrune: {}\n", word)
    assert len(found) == 1 and all(part in found[0] for part in parts), found


def test_all_problems_at_once_in_the_order_of_their_lines(tmp_path: Path) -> None:
    body = "model: {name: vit_tinny_patch16_224, checkpoint: no.pt}\nPrun: {}\nQuantAware: {weight_bits: x}\nseed: -1\n"
    found = problems_of(tmp_path, body, "TrainConfig.epochs=0")
    assert [problem.split(": ")[1] for problem in found] == [
        "model.name",
        "model.checkpoint",
        "Prun",
        "QuantAware.weight_bits",
        "seed",
        "TrainConfig.epochs",
    ]


def test_an_unreadable_place_is_named(tmp_path: Path) -> None:
    for name in (str(tmp_path), str(tmp_path / "no.yaml"), "no_such_recipe"):
        with pytest.raises(InputError, match=name):
            load_recipe(name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(M)
    path.chmod(0)
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(path)


def test_one_alias_bomb_stays_small(tmp_path: Path) -> None:
    levels = "".join(f"l{i}: &l{i} [*l{i - 1}, *l{i - 1}]\n" for i in range(1, 60))
    assert len(problems_of(tmp_path, "l0: &l0 [x]\n" + levels)) == 1


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ([1], "expected a mapping of sections"),
        ({1: 2}, "used as a key"),
        ({"Prune": {"pattern": object()}}, "Prune.pattern: object objects are not allowed"),
        ({"Prune": {"pattern": "${oc.env:HOME}"}}, "interpolations"),
        ({"Prune": print}, "Prune: builtin_function_or_method objects"),
        ({"results": {"a": float("nan")}}, "results.a: nan"),
    ],
)
def test_mappings_from_python(values: Any, part: str) -> None:
    with pytest.raises(InputError, match="recipe: ") as caught:
        recipe_from_dict(values)
    assert part in str(caught.value)


def test_a_mapping_that_holds_itself() -> None:
    values: dict[str, Any] = {"results": {}}
    values["results"]["again"] = values
    with pytest.raises(InputError, match=f"nested more than {text.MAX_DEPTH}"):
        recipe_from_dict(values)


def test_the_limit_of_size_is_read_before_the_text(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    with path.open("wb") as file:  # sparse: two gigabytes that a reader of the whole file would choke on
        file.truncate(2**31)
    with pytest.raises(InputError, match="larger than"):
        load_recipe(path)
