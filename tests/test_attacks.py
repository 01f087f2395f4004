"""What a stranger may send: recipes, checkpoints and artifact folders that try to do more than be data.

Each test is one attack. Nothing may be executed (the canary file must not appear), nothing outside may be read, and
the user gets one line.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_input_support import one_line
from export_support import standard_artifact

from act import load
from act.cli.main import main
from act.errors import InputError
from act.models import read_checkpoint
from act.recipe.load import load_recipe
from act.run.page import render
from act.run.reading import MAX_HEADER, MAX_JSON, check_contained, read_json
from act.verify.folder import verify_folder

MODEL = "model: {name: vit_tiny_patch16_224}\n"
PACKAGE = Path(__file__).resolve().parents[1] / "act"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "executed"


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.canary,)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    shutil.copytree(standard_artifact()[0], tmp_path / "artifact")
    return tmp_path / "artifact"


def broken(folder: Path) -> dict[str, str]:
    return {item.name: item.detail for item in verify_folder(folder) if not item.holds}


# Recipes


@pytest.mark.parametrize(
    "line",
    [
        "Prune: {_target_: os.system, command: 'touch CANARY'}",
        "Prune: {_partial_: true}",
        "description: ${oc.env:HOME}",
        "description: ${oc.create:{_target_:os.system}}",
        "seed: ${hydra:runtime.cwd}",
        "Prune: !!python/object/apply:os.system ['touch CANARY']",
        "hydra: {run: {dir: /tmp}}",
        "defaults: [/etc/passwd]",
        "defaults: [{Prune: ../../../../etc/passwd}]",
        "export: {formats: [../../x]}",
        "name: ../../outside",
        "model: {name: 'local-dir:/etc', pretrained: true}",
        "Distillation: {teacher: {name: vit_tiny_patch16_224, kwargs: {checkpoint_path: x.pth}}}",
    ],
)
def test_recipe_that_is_no_data(
    line: str,
    canary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "r.yaml"
    path.write_text(("" if line.startswith("model") else MODEL) + line.replace("CANARY", str(canary)) + "\n")
    assert main(["run", str(path), "--dir", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert all(entry.startswith("vitcompress: error: ") for entry in err.splitlines())
    assert os.environ["HOME"] not in err.replace(str(tmp_path), "")
    assert not canary.exists() and not (tmp_path.parent / "outside").exists()
    assert not (tmp_path / "run").exists() or [file.name for file in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "word", ["Prune._target_=os.system", "seed=${oc.env:SEED}", "+hydra.x=1", "Prune.align={_target_:1}"]
)
def test_command_line_words_are_data_too(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = one_line(capsys, "plan", "quickstart", word, most=2)
    assert any(part in line for part in ("_target_", "oc.env", "hydra")), line


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"])
def test_model_arguments_that_would_read_other_files(
    name: str, canary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"x": Bomb(canary)}, tmp_path / "x.pth")
    path = tmp_path / "r.yaml"
    path.write_text(f"model: {{name: vit_tiny_patch16_224, kwargs: {{{name}: {tmp_path / 'x.pth'}}}}}\n")
    assert f"model.kwargs.{name}: would read another file" in one_line(capsys, "plan", str(path))
    assert not canary.exists()


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a]\nc: [*b, *b, *b, *b, *b]\n",
        "a: " + "[" * 100_000,
        "a: " + "{b: " * 20_000,
        "#" * 200_000,
        "seed: " + "9" * 100_000,
    ],
    ids=["aliases", "brackets", "braces", "size", "digits"],
)
def test_recipe_that_would_fill_the_memory(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    assert str(path) in one_line(capsys, "recipes", "validate", str(path), most=2)


@pytest.mark.parametrize("text", ['"\\e[2J\\e]0;x\\a"', '"\\u202Etxt.exe"', '"\\x9b2J"'])
def test_text_that_steers_the_terminal(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(MODEL + f"description: {text}\n")
    assert "which steers a terminal" in one_line(capsys, "recipes", "validate", str(path))
    path.write_text(MODEL + "# \u202etxt\n")
    assert "U+202E" in one_line(capsys, "recipes", "show", str(path))


def test_text_that_would_be_html_in_the_report() -> None:
    evil = "<script>alert(1)</script>"
    report = {
        "name": evil,
        "status": evil,
        "goals": [{"met": True, "text": evil}],
        "baseline": {"bytes": 1, "params": 1, "macs": 1},
        "stages": [
            {
                "name": evil,
                "seconds": 1,
                "peak_rss_mb": 1,
                "invariants": [],
                "layers_done": [evil],
                "layers_left": [{"name": evil, "reason": evil}],
            }
        ],
        "artifacts": [{"format": evil, "path": evil, "bytes": 1, "sha256": evil}],
        "environment": {evil: evil},
    }
    page = render(report, f"description: {evil}", [])
    assert "&lt;script&gt;" in page and "<script" not in page


# Checkpoints


@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.bin", "x.safetensors"])
@pytest.mark.parametrize("legacy", [True, False])
def test_checkpoint_that_is_a_program(name: str, legacy: bool, canary: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    torch.save({"model": Bomb(canary)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Bomb(canary), 2))
    with pytest.raises(InputError, match="not a readable checkpoint"):
        read_checkpoint(path)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Bomb(canary), 2))
    assert canary.exists()  # the bomb itself works


@pytest.mark.parametrize("length", [2**63, MAX_HEADER + 1, 10**6])
def test_safetensors_header_that_claims_too_much(length: int, artifact: Path) -> None:
    content = struct.pack("<Q", length) + b"{" + b" " * 1000
    (artifact / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="its header is said to have"):
        load(artifact)
    with pytest.raises(InputError, match="its header is said to have"):
        read_checkpoint(artifact / "model.safetensors")


# Artifact folders


@pytest.mark.parametrize("listed", ["../secret.txt", "/etc/hostname", "sub/../../secret.txt", "a\\..\\b"])
def test_manifest_that_lists_what_lies_outside(listed: str, artifact: Path) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["files"][listed] = {"sha256": "0" * 64, "bytes": 1}
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    assert broken(artifact)["checksums"] == f"{listed}: leads out of the folder"


@pytest.mark.parametrize("listed", ["../secret.txt", "/etc/hostname"])
def test_report_that_lists_what_lies_outside(listed: str, artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = {"schema": 1, "baseline": {}, "artifacts": [{"format": "onnx", "path": listed, "bytes": 1, "sha256": ""}]}
    (artifact.parent / "report.json").write_text(json.dumps(report))
    assert "not a file of this run" in broken(artifact.parent)["report"]
    assert "no file of the run" in one_line(capsys, "bench", str(artifact.parent))


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "arch.json", "manifest.json", "extra"])
def test_link_that_leaves_the_folder(name: str, artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = artifact.parent / "secret"
    secret.write_bytes((artifact / name).read_bytes() if (artifact / name).exists() else b"secret")
    (artifact / name).unlink(missing_ok=True)
    (artifact / name).symlink_to(secret)
    assert list(broken(artifact)) == ["contained"]
    assert f"{name}: a link that leads out" in broken(artifact)["contained"]
    with pytest.raises(InputError, match="a link that leads out of the folder"):
        load(artifact)
    assert "a link that leads out" in one_line(capsys, "analyze", str(artifact))
    assert "a link that leads out" in one_line(capsys, "export", str(artifact), "--to", "onnx")


def test_links_to_folders_outside_and_links_inside(artifact: Path) -> None:
    (artifact / "copy.onnx").symlink_to("model.onnx")
    check_contained(artifact)
    (artifact / "etc").symlink_to("/etc")
    with pytest.raises(InputError, match="etc: a link that leads out"):
        check_contained(artifact)


def test_pipe_that_would_never_end(artifact: Path) -> None:
    os.mkfifo(artifact / "pipe")
    assert "neither a file nor a folder" in broken(artifact)["contained"]
    with pytest.raises(InputError, match="not a plain file"):
        read_json(artifact / "pipe")


@pytest.mark.parametrize("name", ["arch.json", "manifest.json"])
@pytest.mark.parametrize("content", [b"[" * 10**6, b'{"schema": 1' + b" " * MAX_JSON, b'{"schema": 1e999}'])
def test_json_that_would_fill_the_memory(name: str, content: bytes, artifact: Path) -> None:
    (artifact / name).write_bytes(content)
    found = broken(artifact)
    assert "checksums" in found
    if name == "arch.json":
        with pytest.raises(InputError, match=r"arch\.json"):
            load(artifact)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"name": "hf-hub:someone/evil"}, "has no model"),
        ({"name": "local-dir:/etc"}, "has no model"),
        ({"name": "../../x"}, "has no model"),
        ({"name": "vit_tiny_patch16_224", "kwargs": {"checkpoint_path": "x.pth"}}, "would read another file"),
        ({"name": "vit_tiny_patch16_224", "kwargs": {"pretrained_cfg": "x"}}, "would read another file"),
        ({"name": "vit_tiny_patch16_224", "kwargs": {"act_layer": {"_target_": "os.system"}}}, "base.kwargs"),
        ({"name": "vit_tiny_patch16_224", "kwargs": {"embed_dim": 3_000_000}}, "GiB"),
        ({"name": "vit_tiny_patch16_224", "num_classes": 10**11}, "GiB"),
    ],
)
def test_arch_that_names_another_source_or_a_huge_model(base: dict[str, Any], message: str, artifact: Path) -> None:
    arch = json.loads((artifact / "arch.json").read_text())
    (artifact / "arch.json").write_text(json.dumps(arch | {"base": base}))
    with pytest.raises(InputError, match=message) as caught:
        load(artifact)
    assert all("\n" not in problem for problem in caught.value.problems)


@pytest.mark.parametrize("op", ["__import__", "os.system", "../x", 3, None, ["mask"]])
def test_arch_with_an_unknown_edit(op: Any, artifact: Path) -> None:
    arch = json.loads((artifact / "arch.json").read_text())
    (artifact / "arch.json").write_text(json.dumps(arch | {"edits": [{"op": op}]}))
    with pytest.raises(InputError, match="edits"):
        load(artifact)


# The code itself


def test_no_code_of_the_package_can_execute_data() -> None:
    """No pickle, eval, exec, shell or unsafe loader anywhere; torch.load and numpy.load only in their safe form."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                found += [f"{where}: {name}" for name in names if name.split(".")[0] in UNSAFE_MODULES]
                found += [f"{where}: {name}" for name in names if name in ("hydra.utils", "instantiate")]
            if isinstance(node, ast.Call):
                words = {key.arg: ast.unparse(key.value) for key in node.keywords}
                name = ast.unparse(node.func)
                safe = {"torch.load": ("weights_only", "True"), "np.load": ("allow_pickle", "False")}.get(name)
                if (safe and words.get(safe[0]) != safe[1]) or name in UNSAFE_CALLS or "shell" in words:
                    found.append(f"{where}: {name}({words})")
    assert found == []


UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "onnx.load_external_data_for_model",
}


def test_recipes_of_the_package_name_no_file_of_a_machine() -> None:
    from act.recipe.paths import list_recipes
    from act.recipe.text import parse, read_text
    from act.share.foreign import local_paths

    for path in list_recipes():
        assert not list(local_paths(parse(read_text(path), str(path)).values)), path
        assert load_recipe(path)
