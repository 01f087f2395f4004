"""Recipes pulled from folders, https and the Hub: pinned, checked, kept, shown; used again without a connection."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from share_support import RECIPE, Site, as_hub, put_on_hub, site

from act.cli.main import main
from act.cli.sharing import show_pulled
from act.errors import InputError
from act.recipe.load import load_recipe
from act.recipe.pulled import cache_dir, find_pulled, list_pulled
from act.recipe.text import MAX_BYTES
from act.share import fetch
from act.share.address import parse

SHA = hashlib.sha256(RECIPE.encode()).hexdigest()
COMMIT, REPO = "a" * 40, "someone/recipes"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def web() -> Iterator[Site]:
    with site() as found:
        yield found


@pytest.fixture
def hub(web: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    as_hub(web, tmp_path, monkeypatch)
    return web


def pull(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["recipes", "pull", *words]) == code
    captured = capsys.readouterr()
    if code:
        lines = captured.err.splitlines()
        assert lines and all(line.startswith(("vitcompress: error: ", "note: ")) for line in lines)
    return captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """What is said when nothing is pulled."""
    before = list_pulled()
    _, err = pull(capsys, *words, code=code)
    assert list_pulled() == before
    return err


def test_a_pulled_recipe_is_kept_by_its_hash_with_a_lock(web: Site, capsys: pytest.CaptureFixture[str]) -> None:
    url = web.put("/fast.yaml", RECIPE)
    out, err = pull(capsys, url)
    assert (cache_dir() / SHA / "fast.yaml").read_bytes() == RECIPE.encode()
    lock = json.loads((cache_dir() / SHA / "fast.lock.json").read_text())
    assert (lock["source"], lock["revision"], lock["sha256"]) == (url, None, SHA)
    assert f"--sha256 {SHA}" in err
    for shown in (
        url,
        SHA,
        "Digits in int8",
        "vit_tiny_patch16_224",
        "QuantPost",
        "builtin:digits.tar/val",
        "top1 96.1",
    ):
        assert shown in out, shown
    assert f"vitcompress run fast@{SHA[:12]}" in out


def test_the_pulled_name_runs_and_is_shown_first(web: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pull(capsys, web.put("/fast.yaml", RECIPE), "--sha256", SHA)
    assert load_recipe("fast") == load_recipe(f"fast@{SHA[:6]}") == load_recipe(f"fast@{SHA}")
    assert load_recipe("fast").name == "fast"
    capsys.readouterr()
    assert main(["run", "fast", "--dir", str(tmp_path / "run"), "data.limit_val=20"]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert f"note: sha256: {SHA}" in notes and any("QuantPost: images 16" in line for line in notes)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["name"] == "fast" and report["data"]["val_images"] == 20
    capsys.readouterr()
    assert main(["recipes", "ls", "--json"]) == 0
    assert f"fast@{SHA[:12]}" in [entry["name"] for entry in json.loads(capsys.readouterr().out)]
    for name in ("fast", f"fast@{SHA[:12]}"):
        assert main(["nodes", name, "--pattern", "blocks.0", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["shape"] == [65, 96]


def test_wrong_hash(web: Site, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, web.put("/fast.yaml", RECIPE), "--sha256", "0" * 64)
    assert f"its sha256 is {SHA}, not {'0' * 64}" in line
    assert "allowed: 64 hexadecimal digits" in refused(capsys, web.url + "/fast.yaml", "--sha256", "abc")


def test_changed_content_needs_its_hash(web: Site, capsys: pytest.CaptureFixture[str]) -> None:
    url = web.put("/fast.yaml", RECIPE)
    pull(capsys, url)
    pull(capsys, url)
    changed = RECIPE + "# changed\n"
    digest = hashlib.sha256(changed.encode()).hexdigest()
    web.put("/fast.yaml", changed)
    assert f"changed since it was pulled ({SHA[:12]} then, {digest} now)" in refused(capsys, url)
    pull(capsys, url, "--sha256", digest)
    with pytest.raises(InputError, match="several recipes of this name"):
        find_pulled("fast")
    assert find_pulled(f"fast@{digest[:8]}") is not None


def test_redirect_to_elsewhere(web: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with site() as other:
        elsewhere = other.put("/fast.yaml", RECIPE)
        assert f"leads on to {elsewhere}" in refused(capsys, web.put("/fast.yaml", "", 302, Location=elsewhere))
        assert other.asked == []
    for place in ("file:///etc/hostname", "http://localhost:1/fast.yaml", "https://127.0.0.1/fast.yaml"):
        assert place in refused(capsys, web.put("/fast.yaml", "", 301, Location=place))
    web.put("/real.yaml", RECIPE)
    pull(capsys, web.put("/fast.yaml", "", 302, Location="/real.yaml"))
    assert "302" in refused(capsys, web.put("/loop.yaml", "", 302, Location="/loop.yaml"))


def test_too_large(web: Site, capsys: pytest.CaptureFixture[str]) -> None:
    large = RECIPE + "#" * MAX_BYTES
    assert "larger than 128 KiB" in refused(capsys, web.put("/fast.yaml", large))
    not_said_beforehand = web.put("/fast.yaml", large, Content_Length="")
    assert "larger than 128 KiB" in refused(capsys, not_said_beforehand)


def test_an_endless_answer_ends(web: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(fetch, "LONGEST", -1.0)
    assert "still sending after" in refused(capsys, web.put("/fast.yaml", RECIPE), code=1)


@pytest.mark.parametrize(("status", "code"), [(404, 2), (403, 2), (500, 1), (503, 1)])
def test_errors_of_the_server(status: int, code: int, web: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"the server answers {status}" in refused(capsys, web.put("/fast.yaml", "x", status), code=code)


def test_half_an_answer_is_not_taken_for_a_recipe(web: Site, capsys: pytest.CaptureFixture[str]) -> None:
    url = web.put("/fast.yaml", RECIPE, Content_Length=str(len(RECIPE) + 100))
    assert f"ended after {len(RECIPE)} of {len(RECIPE) + 100} bytes" in refused(capsys, url, code=1)


def test_what_a_server_says_does_not_steer_the_terminal(
    web: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(BaseHTTPRequestHandler.responses, 404, ("\x1b[2J\x1b]0;x\x07gone", ""))
    assert "the server answers 404 \ufffd[2J\ufffd]0;x\ufffdgone" in refused(capsys, web.url + "/fast.yaml")


def test_each_address_keeps_its_own_lock(web: Site, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = web.put("/fast.yaml", RECIPE), web.put("/mirror/fast.yaml", RECIPE)
    pull(capsys, first)
    pull(capsys, second)
    assert {item.lock.source for item in list_pulled()} == {first, second}
    assert find_pulled("fast") is not None  # the same content under one name is one recipe
    web.put("/fast.yaml", RECIPE + "seed: 1\n")
    assert "changed since it was pulled" in refused(capsys, first)


@pytest.mark.parametrize("lock", ["{", '{"source": 1, "revision": null, "sha256": 2, "pulled": 3}'])
def test_a_damaged_lock_stops_no_recipe_of_ones_own(
    lock: str, web: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pull(capsys, web.put("/fast.yaml", RECIPE))
    (cache_dir() / SHA / "fast.lock.json").write_text(lock)
    assert main(["recipes", "ls"]) == 2 and "fast.lock.json: cannot be read" in capsys.readouterr().err
    own = tmp_path / "own.yaml"
    own.write_text(RECIPE)
    show_pulled(str(own), load_recipe(own))
    assert capsys.readouterr().err == ""


def test_offline(capsys: pytest.CaptureFixture[str]) -> None:
    with site() as web:
        url = web.put("/fast.yaml", RECIPE)
        pull(capsys, url)
    out, err = pull(capsys, url)  # the server is gone
    assert "offline: " in err and "using the copy of" in err and SHA in out
    assert "cannot be reached" in refused(capsys, url.replace("fast", "other"), code=1)
    assert "cannot be reached" in refused(capsys, url, "--sha256", "0" * 64, code=1)


def test_pinned_by_hash_it_is_not_fetched_again(web: Site, capsys: pytest.CaptureFixture[str]) -> None:
    url = web.put("/fast.yaml", RECIPE)
    pull(capsys, url, "--sha256", SHA)
    _, err = pull(capsys, url, "--sha256", SHA)
    assert "not fetched again" in err and web.asked == ["GET /fast.yaml"]


def test_a_changed_copy_is_not_used(web: Site, capsys: pytest.CaptureFixture[str]) -> None:
    pull(capsys, web.put("/fast.yaml", RECIPE))
    (cache_dir() / SHA / "fast.yaml").write_text(RECIPE + "seed: 3\n")
    for words in (["plan", "fast"], ["recipes", "pull", web.url + "/fast.yaml", "--sha256", SHA]):
        capsys.readouterr()
        assert main(words) == 2
        assert "changed since it was pulled" in capsys.readouterr().err
    (cache_dir() / SHA / "fast.lock.json").write_text("{")
    assert main(["plan", "fast"]) == 2
    assert "fast.lock.json: cannot be read" in capsys.readouterr().err


def test_from_a_file_and_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shared").mkdir()
    file = tmp_path / "shared" / "fast.yaml"
    file.write_text(RECIPE)
    pull(capsys, str(file))
    assert list_pulled()[0].lock.source == str(file)
    pull(capsys, str(tmp_path / "shared"))
    (tmp_path / "shared" / "other.yaml").write_text(RECIPE)
    assert "holds not one recipe but 2 (fast.yaml, other.yaml)" in refused(capsys, str(tmp_path / "shared"))
    assert "no such file" in refused(capsys, str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("data: {train: /etc}\n", "data.train: /etc: a path of a machine"),
        ("data: {val: ../../secret}\n", "data.val: ../../secret: a path of a machine"),
        ("data: {class_map: ~/.netrc}\n", "data.class_map: ~/.netrc: a path of a machine"),
        ("data: {train: photos}\n", "data.train: photos: a path of a machine"),
        ("data: {train: wds//etc}\n", "data.train: wds//etc: a path of a machine"),
        ("data: {train: hfds//etc}\n", "data.train: hfds//etc: a path of a machine"),
        ("data: {train: hfds/../photos}\n", "data.train: hfds/../photos: a path of a machine"),
        ("data: {train: hfds/a/b/c@train}\n", "data.train: hfds/a/b/c@train: a path of a machine"),
        ("QuantPost: {}\nQuantPost: {}\n", "fast.yaml:3: QuantPost: given twice (first on line 2)"),
        ("Distillation: {teacher: [{name: x, checkpoint: /a.pt}]}\n", "Distillation.teacher[0].checkpoint: /a.pt"),
        ("Prune: {_target_: os.system}\n", "would run code"),
        ("seed: ${oc.env:HOME}\n", "interpolations and resolvers"),
        ("Prune: {pattern: wrong}\n", "Prune.pattern"),
    ],
)
def test_what_a_strangers_recipe_may_not_say(
    line: str, message: str, web: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "model: {name: vit_tiny_patch16_224, pretrained: true}\n" + line
    assert message in refused(capsys, web.put("/fast.yaml", body))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://host/a.yaml", "ftp:// is not known"),
        ("file:///etc/a.yaml", "file:// is not known"),
        ("http://example.org/a.yaml", "http can be changed on the way"),
        ("http://localhost.example.org/a.yaml", "http can be changed on the way"),
        ("http://localhost@example.org/a.yaml", "with a user"),
        ("https://me:secret@example.org/a.yaml", "with a user"),
        ("https://example.org/a.yaml?token=1", "query"),
        ("https://example.org/a.exe", "names no recipe"),
        ("https:///a.yaml", "names no recipe"),
        ("https://example.org:port/a.yaml", "not an address"),
        ("https://[::1/a.yaml", "not an address"),
        ("https://example.org/\u00e9.yaml", "percent-encoded"),
        ("https://example.org/a b.yaml", "percent-encoded"),
        ("hf://owner/a.yaml", "not a file of the Hub"),
        ("hf://owner/repo/../../a.yaml", "is no recipe of the repository"),
        ("hf://owner/repo/a.py", "is no recipe of the repository"),
        ("hf://owner/repo/a.yaml@rev ision", "not a file of the Hub"),
    ],
)
def test_bad_addresses(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://a..b/x.yaml", "not an address; check the host"),
        ("~nobody-of-this-name/x.yaml", "no such file"),
        ("a" * 5000, "no such file"),
    ],
)
def test_addresses_of_nothing(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, text)


def test_good_addresses() -> None:
    found = parse("hf://owner/repo/sub/fast.yaml@v1")
    assert (found.repo, found.path, found.revision, found.stem) == ("owner/repo", "sub/fast.yaml", "v1", "fast")
    assert parse("hf://owner/repo/fast.yaml").revision is None
    assert parse("https://example.org/a/fast.yaml").stem == "fast"
    assert parse("http://[::1]:8000/fast.yaml").kind == "web"
    assert parse("folder/fast.yaml").kind == "file"


def test_the_hub_pins_a_branch_to_its_commit(hub: Site, capsys: pytest.CaptureFixture[str]) -> None:
    put_on_hub(hub, REPO, "sub/fast.yaml", RECIPE, COMMIT, "main")
    out, _ = pull(capsys, f"hf://{REPO}/sub/fast.yaml@main")
    lock = list_pulled()[0].lock
    assert (lock.source, lock.revision, lock.sha256) == (f"hf://{REPO}/sub/fast.yaml", COMMIT, SHA)
    assert COMMIT in out
    asked = len(hub.asked)
    _, err = pull(capsys, f"hf://{REPO}/sub/fast.yaml@{COMMIT}")
    assert "not fetched again" in err and len(hub.asked) == asked


def test_what_is_wrong_on_the_hub(hub: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the Hub answers 404" in refused(capsys, f"hf://{REPO}/fast.yaml")
    put_on_hub(hub, REPO, "fast.yaml", RECIPE, COMMIT, "main", size=10**9)
    assert "larger than 128 KiB" in refused(capsys, f"hf://{REPO}/fast.yaml@main")
    hub.put(f"/api/models/{REPO}/paths-info/{COMMIT}", "[]", Content_Type="application/json")
    assert "no such file in commit" in refused(capsys, f"hf://{REPO}/fast.yaml@main")
    hub.put(f"/api/models/{REPO}/revision/main", "x", 401)
    assert "check owner, repository and revision" in refused(capsys, f"hf://{REPO}/fast.yaml@main")


def test_offline_hub(hub: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import huggingface_hub.constants as constants

    put_on_hub(hub, REPO, "fast.yaml", RECIPE, COMMIT, "main")
    pull(capsys, f"hf://{REPO}/fast.yaml")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _, err = pull(capsys, f"hf://{REPO}/fast.yaml")
    assert "offline: " in err and "using the copy" in err
    assert "the Hub cannot be reached" in refused(capsys, f"hf://{REPO}/other.yaml", code=1)


def test_without_the_hubs_library(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'vitcompress[hub]'" in refused(capsys, f"hf://{REPO}/fast.yaml")
