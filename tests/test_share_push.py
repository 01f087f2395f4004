"""Recipes given to others tell nothing of the machine they were written on; neither does an artifact."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
from export_support import DIGITS
from safetensors.torch import save_file
from share_support import RECIPE, Site, as_hub, put_on_hub, site

from act.cli.main import main
from act.recipe.load import load_recipe
from act.share import leaks
from act.share.leaks import find_leaks

USER, HOST = "annamaria", "secretlab7"


@pytest.fixture(autouse=True)
def somebody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home" / USER
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOGNAME", USER)
    monkeypatch.setattr(leaks.socket, "gethostname", lambda: f"{HOST}.lan")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return home


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("data: {train: /home/me/photos}", "/home/me/photos"),
        ("# from C:\\Users\\me", "C:\\Users\\me"),
        ("# \\\\server\\share", "\\\\server\\share"),
        ("x: '~/photos/a'", "~/photos/a"),
        ("x: file:///data/x", "file:///data/x"),
        ("# kept in /mnt/disk-1/run, see there", "/mnt/disk-1/run"),
        (f"# {USER.upper()}'s best", USER),
        (f"machine: {HOST}", HOST),
        (f"machine: {HOST}.lan", f"{HOST}.lan"),
        ("command: run --dir=/scratch", "/scratch"),
    ],
)
def test_traces_are_found(line: str, words: str) -> None:
    found = find_leaks(f"a: 1\n{line}\n")
    assert (2, words) in [(leak.line, leak.words) for leak in found]
    assert all(leak.words == words or leak.words in words for leak in found)


@pytest.mark.parametrize(
    "line",
    [
        "# see https://arxiv.org/abs/2305.10727 and http://localhost:1/a",
        "# KL / agreement 0.951 / 70.0, 30/60 and/or 3/s",
        "data: {train: builtin:digits.tar/train, val: hfds/owner/name}",
        'include: ["blocks.*/x", "~Prune"]',
        "learning_rate: 2e-4  # a fifth of 1e-3",
        f"x: {USER}_drop {HOST}x",
    ],
)
def test_what_is_no_trace(line: str) -> None:
    assert find_leaks(line) == []


def test_shipped_recipes_can_be_pushed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "push", "quickstart", str(tmp_path)]) == 0
    sent = (tmp_path / "quickstart.yaml").read_bytes()
    assert b"# The embedded example" in sent
    assert hashlib.sha256(sent).hexdigest() in capsys.readouterr().out
    assert (
        main(["recipes", "pull", str(tmp_path / "quickstart.yaml"), "--sha256", hashlib.sha256(sent).hexdigest()]) == 0
    )


@pytest.fixture
def local(tmp_path: Path, somebody: Path) -> Path:
    """A recipe with a folder, a checkpoint and a comment of this machine."""
    (somebody / "photos").symlink_to(Path(leaks.__file__).parent)
    kwargs = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 10}
    save_file(timm.create_model("vit_tiny_patch16_224", **kwargs).state_dict(), somebody / "model.safetensors")
    path = tmp_path / "mine.yaml"
    checkpoint = DIGITS.replace("model.safetensors", str(somebody / "model.safetensors"))
    path.write_text(f"# of {USER} on {HOST}\n{checkpoint}")
    return path


def test_traces_are_refused_line_by_line(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.yaml"
    assert main(["recipes", "push", str(local), str(target)]) == 2
    err = capsys.readouterr().err
    assert f"mine.yaml:1: {USER}: your user name" in err or f"mine.yaml:1: {USER}: the name of your home" in err
    assert f"mine.yaml:1: {HOST}: the name of this machine" in err
    assert "mine.yaml:6: model.checkpoint: " in err and "give --strip" in err
    assert not target.exists()


def test_stripped_recipes_can_be_pulled_by_others(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.yaml"
    assert main(["recipes", "push", str(local), str(target), "--strip"]) == 0
    err = capsys.readouterr().err
    assert "note: model.checkpoint: " in err and "note: comments are left out" in err
    sent = target.read_text()
    assert USER not in sent and HOST not in sent and str(tmp_path) not in sent
    assert load_recipe(target).model.checkpoint is None
    assert main(["recipes", "pull", str(target)]) == 0


def test_words_that_cannot_be_stripped_are_still_refused(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local.write_text(local.read_text() + f'description: "of {USER}"\n')
    assert main(["recipes", "push", str(local), str(tmp_path / "out.yaml"), "--strip"]) == 2
    assert "not pushed: 1 traces" in capsys.readouterr().err
    assert main(["recipes", "push", str(local), str(tmp_path / "out.yaml"), "--strip", "--allow", USER]) == 0


def test_push_does_not_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.yaml"
    target.write_text("mine")
    assert main(["recipes", "push", "quickstart", str(target)]) == 2
    assert "exists" in capsys.readouterr().err and target.read_text() == "mine"
    assert main(["recipes", "push", "quickstart", str(target), "--force"]) == 0
    assert main(["recipes", "push", "quickstart", str(target)]) == 0  # the same content is no conflict
    for place in ("https://example.org/a.yaml", str(tmp_path / "none" / "a.yaml"), "ftp://x/a.yaml"):
        assert main(["recipes", "push", "quickstart", place]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with site() as found:
        as_hub(found, tmp_path, monkeypatch)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield found


NEW_COMMIT = "b" * 40


def takes_commits(hub: Site) -> None:
    """The repository someone/recipes, which has no file yet."""
    commit = NEW_COMMIT
    hub.put("/api/models/someone/recipes/paths-info/main", "[]", Content_Type="application/json")
    answer = {"files": [{"path": "fast.yaml", "uploadMode": "regular", "shouldIgnore": False}]}
    hub.put("/api/models/someone/recipes/preupload/main", json.dumps(answer), Content_Type="application/json")
    done = {"commitUrl": f"{hub.url}/someone/recipes/commit/{commit}", "commitOid": commit, "success": True}
    hub.put("/api/models/someone/recipes/commit/main", json.dumps(done), Content_Type="application/json")


def test_push_to_the_hub(hub: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "fast.yaml"
    recipe.write_text(RECIPE)
    takes_commits(hub)
    assert main(["recipes", "push", str(recipe), "hf://someone/recipes"]) == 0
    digest = hashlib.sha256(RECIPE.encode()).hexdigest()
    printed = capsys.readouterr().out.strip()
    assert printed == f"vitcompress recipes pull hf://someone/recipes/fast.yaml@{NEW_COMMIT} --sha256 {digest}"
    lines = [json.loads(line) for line in hub.pages["posted"][2].decode().splitlines()]
    sent = next(line["value"] for line in lines if line["key"] == "file")
    assert sent["path"] == "fast.yaml" and base64.b64decode(sent["content"]) == RECIPE.encode()


def test_push_to_the_hub_does_not_overwrite(hub: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "fast.yaml"
    recipe.write_text(RECIPE)
    takes_commits(hub)
    before = "c" * 40
    put_on_hub(hub, "someone/recipes", "fast.yaml", "another", before, "main")
    words = ["recipes", "push", str(recipe), "hf://someone/recipes"]
    assert main(words) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and "exists in the repository" in err[0] and "--force" in err[0]
    assert not [asked for asked in hub.asked if "/commit/" in asked]
    assert main([*words, "--force"]) == 0
    assert f"@{NEW_COMMIT} " in capsys.readouterr().out
    same = "d" * 40
    put_on_hub(hub, "someone/recipes", "fast.yaml", RECIPE, same, "main")
    assert main(words) == 0  # nothing to commit
    assert f"@{same} " in capsys.readouterr().out


def test_the_hub_refuses(hub: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fast.yaml").write_text(RECIPE)
    takes_commits(hub)
    hub.put("/api/models/someone/recipes/preupload/main", "no", 403)
    assert main(["recipes", "push", str(tmp_path / "fast.yaml"), "hf://someone/recipes/fast.yaml"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and "the Hub answers 403" in err[0] and "logged in" in err[0]


def test_an_artifact_tells_nothing_of_the_machine(local: Path, somebody: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(["run", str(local), "--dir", str(folder)]) == 0
    shared = [*(folder / "artifact").rglob("*"), folder / "report.json", folder / "report.html"]
    shared += [folder / "environment.json", folder / ".lock"]
    assert len(shared) > 8
    for file in shared:
        content = file.read_bytes()
        for trace in (str(tmp_path), str(somebody), USER, HOST, str(Path.cwd())):
            assert trace.encode() not in content, (file.name, trace)
    frozen = load_recipe(folder / "artifact" / "recipe.yaml")
    assert frozen.model.checkpoint is None and frozen.data.train == "builtin:digits.tar/train"
    assert str(somebody / "model.safetensors") in (folder / "recipe.yaml").read_text()  # the run itself goes on from it
