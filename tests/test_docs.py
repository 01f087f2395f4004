"""README and docs/ are true: every snippet is run, or at least read by the parser or loader that it is meant for.

TABLE says of each block, by page and first line, what is done with it, and COMMANDS of each command of the shell
blocks. A snippet without an entry fails.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from docs_support import ROOT, blocks, inline_commands, named, pages, parse, shows
from PIL import Image

from act.cli.main import main
from act.errors import InputError
from act.recipe.load import read_recipe, recipe_from_dict
from act.recipe.text import parse as parse_yaml

QUICKSTART = 'vitcompress run quickstart "export.formats=[onnx,onnxruntime,openvino,tensorrt]"'
# Enough for the files to be made: a step or two of training, few images.
LIMITS = [
    *("data.limit_train=64", "data.limit_val=40", "data.calibration_images=32", "target.max_drop=100"),
    *("export.benchmark=false", "export.pad_tokens=false", "export.min_agreement=50"),
]

RUN, PARSE, SHELL = "run", "parse", "shell"
COMMANDS = {
    "python3 -m venv .venv": PARSE,
    ". .venv/bin/activate": SHELL,
    "pip install .": SHELL,
    "pip install -e '.[dev]'": SHELL,
    "pytest": SHELL,
    "vitcompress run quickstart": PARSE,
    "vitcompress plan recipe.yaml": PARSE,
    "vitcompress run recipe.yaml": PARSE,
    "vitcompress verify runs/recipe": PARSE,
    "accelerate launch --multi_gpu --num_processes 2 -m act run recipe.yaml --dir runs/two": PARSE,
    "vitcompress recipes freeze runs/mine -o fast.yaml": PARSE,
    "vitcompress recipes push fast.yaml hf://owner/repo": PARSE,
    "vitcompress recipes pull https://example.org/fast.yaml --sha256 HASH": PARSE,
    "vitcompress run fast data.train=photos data.val=labelled": PARSE,
    "vitcompress reproduce fast data.train=photos data.val=labelled": PARSE,
    "vitcompress search recipe.yaml --space space.yaml --dir /shared/search --trials 20": PARSE,
    "vitcompress search recipe.yaml --space space.yaml --dir runs/search --storage postgresql://user@host/optuna "
    "--trials 20": PARSE,
    QUICKSTART: "fixture",
    "vitcompress engine runs/quickstart --batches 1,8,32": PARSE,
    "vitcompress bench runs/quickstart --batch 1,4,16 --threads 2": PARSE,
    "vitcompress bench runs/quickstart --batch 1 --threads 2 --profile": RUN,
    "vitcompress sensitivity quickstart --images 64 --treatments sparsity,quantization --top 6": PARSE,
    "vitcompress plan quickstart Prune.align=64": RUN,
    "vitcompress run quickstart TrainConfig.epochs=3": RUN,
    "vitcompress verify runs/quickstart": PARSE,
    "vitcompress run quickstart ~Prune ~QuantAware LowRank=half QuantPost=int8 export.benchmark=false --dir runs/low": (
        PARSE
    ),
    "python -m pytest tests/test_strategies_contract.py -k LowRank": PARSE,
}
# Words added to a command that is run, so that it takes a moment only; and the exit codes that it may have.
ADDED = {"vitcompress bench runs/quickstart --batch 1 --threads 2 --profile": ["--repeats", "1", "--backend=openvino"]}
EXIT = {"vitcompress run quickstart TrainConfig.epochs=3": 2}

STRATEGY, TROUBLE, ACT = "docs/writing-a-strategy.md", "docs/troubleshooting.md", "docs/act-migration.md"
STRATEGY_CODE = '"""LowRank: each weight of an MLP as the product of two narr'
STRATEGY_YAML = "# Each weight of the MLPs as two factors of half its size tog"
ACT_PROBLEMS = "act.yaml:1: Global: has no counterpart; write `model: {name:"
# What is done: a recipe, or a search space, is loaded; ACT's recipe is refused with just the problems shown; api,
# runtime and preprocessing are executed; the strategy runs the contract; an output is what its command prints, apart
# from `...`; figures were printed by the command above them, and differ from machine to machine.
TABLE = {
    ("README.md", "  0:23 16 products run on integers"): "figures",
    ("README.md", "model:        {name: deit_tiny_patch16_224, checkpoint: deit"): "recipe",
    ("README.md", "from act import AutoCompression"): "api",
    ("docs/searching.md", "QuantAware.weight_bits:    {choice: [4, 8]}"): "space",
    ("docs/structured-pruning.md", "Distillation: {}                                   # trainin"): "recipe",
    ("docs/strategies.md", "Distillation: {node: auto, loss: cosine, alpha: 20.0, soft_w"): "recipe",
    (ACT, "Global:"): "refused",
    (ACT, ACT_PROBLEMS): "problems",
    (ACT, "model: {name: vit_base_patch16_224, pretrained: true}"): "recipe",
    ("docs/deployment.md", "import json"): "preprocessing",
    ("docs/deployment.md", "import numpy as np"): "runtime",
    ("docs/deployment.md", "import torch"): "runtime",
    ("docs/several-machines.md", "data: {batch_size: 16}"): "recipe",
    ("docs/sharing.md", "quickstart: all 20 compared results hold"): "figures",
    (STRATEGY, STRATEGY_CODE): "strategy",
    (STRATEGY, STRATEGY_YAML): "strategy",
    (TROUBLE, "quickstart/model.onnxruntime.onnx in onnxruntime f32, batch"): "figures",
    (TROUBLE, "quickstart: vit_tiny_patch16_224, one layer at a time, 64 im"): "figures",
    (TROUBLE, "..."): "output",
    (TROUBLE, "vitcompress: error: --dir: runs/quickstart holds a run of an"): "output",
}


def of(treatment: str, language: str) -> list[Any]:
    """Parameters for a test of the blocks with this treatment."""
    found = [item for (page, start), how in TABLE.items() if how == treatment for item in named(page, start)]
    assert found and all(item.language == language for item in found)
    return [pytest.param(item, id=f"{item.page}: {item.first[:40]}") for item in found]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with the files that the recipes of the pages name."""
    for name in ("photos", "labelled_photos"):
        (tmp_path / name).mkdir()
    (tmp_path / "deit_tiny.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A current folder with a short run in runs/quickstart."""
    path = tmp_path_factory.mktemp("docs")
    before = Path.cwd()
    os.chdir(path)
    assert main([*shlex.split(QUICKSTART)[1:], *LIMITS]) == 0
    yield path
    os.chdir(before)


def test_every_snippet_and_command_has_an_entry() -> None:
    found = blocks()
    languages = {item.language for item in found}
    assert languages == {"sh", "yaml", "python", "text"}, languages
    shown = [item for item in found if item.language != "sh"]
    listed = {key for key in TABLE for item in shown if item.page == key[0] and item.first.startswith(key[1])}
    unlisted = [item for item in shown if not any(item in named(*key) for key in TABLE)]
    assert unlisted == [], "say in TABLE what is done with these"
    assert set(TABLE) - listed == set(), "no longer on any page"
    commands = {command for item in found if item.language == "sh" for command in item.commands}
    assert commands - set(COMMANDS) == set(), "say in COMMANDS what is done with these"
    assert set(COMMANDS) - commands == set(), "no longer on any page"


def test_every_command_is_accepted_by_its_parser() -> None:
    for command, how in COMMANDS.items():
        if how != SHELL:
            parse(command)
    mentioned = inline_commands()
    assert len(mentioned) > 30
    for _, command in mentioned:
        parse(command)


@pytest.mark.parametrize("command", [command for command, how in COMMANDS.items() if how == RUN])
def test_commands_print_what_the_page_shows(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*shlex.split(command)[1:], *ADDED.get(command, [])]) == EXIT.get(command, 0)
    printed = "".join(capsys.readouterr())
    texts = [item for key, how in TABLE.items() if how == "output" for item in named(*key)]
    for item in [item for item in texts if command in item.after]:
        # Wildcard lines stand between parts of stdout and stderr, so each part is looked for by itself.
        for part in item.text.split("\n...\n"):
            assert shows(part.removeprefix("...\n"), printed), printed


@pytest.mark.parametrize("item", of("recipe", "yaml"))
def test_recipes_load(item: Any, here: Path) -> None:
    path = here / "recipe.yaml"
    path.write_text(item.text, encoding="utf-8")
    loaded = read_recipe(path)
    assert loaded.notes == []
    assert set(loaded.recipe.strategies) <= set(parse_yaml(item.text, "page").values)


def test_the_recipe_of_act_is_refused_as_shown(here: Path) -> None:
    (here / "act.yaml").write_text(named(ACT, "Global:")[0].text, encoding="utf-8")
    with pytest.raises(InputError) as raised:
        read_recipe("act.yaml")
    assert raised.value.problems == named(ACT, ACT_PROBLEMS)[0].text.splitlines()


def test_every_act_field_on_the_page_is_one_of_the_aliases_or_ours() -> None:
    from act.recipe.aliases import _REFUSED_FIELDS, _REFUSED_SECTIONS

    page = (ROOT / ACT).read_text(encoding="utf-8")
    explained = ("Distill", "region_weights_names", "simulate_activation_quant", "teacher_model_filename")
    missing = [name for name in _REFUSED_SECTIONS if name not in page and name not in explained]
    fields = {field for part in _REFUSED_FIELDS.values() for field in part} - {"teacher_params_filename", *explained}
    # pruned_ratio stands in the row of TransformerPrune, whose field it is.
    missing += [field for field in fields if f"`{field}" not in page and f"{field}`" not in page]
    assert missing == []


@pytest.mark.parametrize("item", of("space", "yaml"))
def test_search_spaces_load(item: Any, here: Path) -> None:
    from act.search.space import read_space

    path = here / "space.yaml"
    path.write_text(item.text, encoding="utf-8")
    base = recipe_from_dict({"model": {"name": "vit_tiny_patch16_224"}, "Prune": {}, "QuantAware": {}})
    assert len(read_space(path, base).dimensions) == len(parse_yaml(item.text, "page").values)


@pytest.mark.parametrize("item", of("api", "python"))
def test_the_python_interface(item: Any, here: Path) -> None:
    import timm

    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3, "num_classes": 5}
    model = timm.create_model("vit_tiny_patch16_224", **kwargs)
    (here / "recipe.yaml").write_text(
        "QuantPost: {equalize: false, calibration: minmax}\ndata: {calibration_images: 8}\n"
        "export: {benchmark: false, min_agreement: 0}\n",
        encoding="utf-8",
    )
    names = {"model": model, "loader": [torch.randn(8, 3, 32, 32)]}
    exec(item.text, names)
    assert (here / "out" / "artifact" / "model.onnx").is_file()
    assert names["result"].report["artifacts"][0]["format"] == "onnx"  # type: ignore[attr-defined]


@pytest.mark.parametrize("item", of("preprocessing", "python"))
def test_preprocessing_without_torch_is_that_of_the_run(item: Any, folder: Path) -> None:
    from act.data.preprocess import Preprocess, eval_transform

    names: dict[str, Any] = {}
    exec(item.text, names)
    settings = json.loads((folder / "runs/quickstart/artifact/preprocess.json").read_text())
    ours = eval_transform(Preprocess(**{key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}))
    random = np.random.default_rng(0)
    for size in ((8, 8), (50, 41), (37, 64)):
        image = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), np.uint8))
        np.testing.assert_allclose(names["prepare"](image), ours(image).numpy(), atol=1e-6)


@pytest.mark.parametrize("item", of("runtime", "python"))
def test_files_open_as_shown(item: Any, folder: Path) -> None:
    names: dict[str, Any] = {}
    exec(item.text, names)
    logits = np.asarray(names["logits"])
    assert logits.shape == (8, 10) and np.isfinite(logits).all()


def test_the_strategy_of_the_page_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both files beside the package's own, the registry found anew, and the contract test on every family."""
    import act.edits
    import act.recipe.compose
    import act.strategies as package
    from act.strategies.base import Strategy, load_strategies

    folder = tmp_path / "strategies"
    folder.mkdir()
    (folder / "low_rank.py").write_text(named(STRATEGY, STRATEGY_CODE)[0].text, encoding="utf-8")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "configs" / "LowRank").mkdir()
    (tmp_path / "configs" / "LowRank" / "half.yaml").write_text(
        named(STRATEGY, STRATEGY_YAML)[0].text, encoding="utf-8"
    )
    load_strategies()
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    monkeypatch.setattr(Strategy, "_registry", dict(Strategy._registry))
    monkeypatch.setattr(act.edits, "_EDITS", dict(act.edits._EDITS))
    monkeypatch.setattr(act.recipe.compose, "configs_dir", lambda: tmp_path / "configs")
    try:
        assert "LowRank" in load_strategies()
        recipe = recipe_from_dict({"model": {"name": "vit_tiny_patch16_224"}}, ["LowRank=half"])
        assert recipe.strategies["LowRank"].share == 0.5
        contract = importlib.import_module("test_strategies_contract")
        for family in contract.FAMILIES:
            (tmp_path / family).mkdir()
            contract.test_contract("LowRank", family, tmp_path / family)
    finally:
        sys.modules.pop("act.strategies.low_rank", None)


def test_the_recipe_reference_is_what_its_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("recipe_reference", ROOT / "scripts" / "recipe_reference.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = (ROOT / "docs" / "recipe-reference.md").read_text(encoding="utf-8")
    assert script.reference() == written, "run: python scripts/recipe_reference.py"
    bare = [line for line in written.splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert bare == [], "these keys have no comment beside their field"


def test_links_lead_somewhere() -> None:
    for page, text in pages().items():
        for target in re.findall(r"\]\(((?!https?:)[^)#]+)", text):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"
        for target in re.findall(r"`(docs/[\w-]+\.md)`", text):
            assert (ROOT / target).is_file(), f"{page}: {target}"
