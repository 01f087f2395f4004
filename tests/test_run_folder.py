"""Atomic files, the event log, the run folder's lock and its claim."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from pathlib import Path

import pytest
import torch

from act.errors import InputError
from act.recipe.schema import Recipe
from act.run.atomic import replacing, sha256_file, write_json, write_text
from act.run.folder import RunFolder, differences, open_stage
from act.run.keys import chain_key, data_part, tensors_hash
from act.run.log import EventLog, read_events
from act.run.sealed import write_sealed


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_replacing_keeps_the_suffix_and_stays_in_the_folder(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.npy") as temporary:
        assert temporary.suffix == ".npy"
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"abc")
    assert sha256_file(tmp_path / "a.npy") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_events_survive_a_line_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path)("one", "hello", loss=torch.tensor(1.5), bad=float("nan"))
    with path.open("a") as file:
        file.write('{"event": "cut')
    EventLog(path)("two")
    events = read_events(path)
    assert [event["event"] for event in events] == ["one", "two"]
    assert events[0]["loss"] == 1.5
    assert events[0]["bad"] == "nan"
    assert "hello" in capsys.readouterr().err


def test_only_the_main_process_writes_events(tmp_path: Path) -> None:
    EventLog(tmp_path / "events.jsonl", main=False)("one", "hello")
    assert not list(tmp_path.iterdir())


def _hold(path: Path, ready: object, done: object) -> None:
    with RunFolder(path).locked():
        ready.set()  # type: ignore[attr-defined]
        done.wait(30)  # type: ignore[attr-defined]


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready, done))
    other.start()
    try:
        assert ready.wait(30)
        with pytest.raises(InputError, match=rf"in use by process {other.pid} .*since"), RunFolder(tmp_path).locked():
            pass
    finally:
        done.set()
        other.join()
    with RunFolder(tmp_path).locked():
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_folder_of_another_recipe_is_refused_with_what_differs(tmp_path: Path) -> None:
    folder, recipe = RunFolder(tmp_path / "run"), Recipe()
    assert folder.claim(recipe, "text") == []
    renamed = Recipe(name="other", description="same settings")
    assert folder.claim(renamed, "text") == []
    changed = Recipe()
    changed.train.learning_rate = 0.5
    with pytest.raises(InputError, match=re.escape("TrainConfig.learning_rate: 0.0002 -> 0.5") + r".*--force"):
        folder.claim(changed, "text")
    [note] = folder.claim(changed, "text", force=True)
    assert note.startswith("--force: ") and "TrainConfig.learning_rate: 0.0002 -> 0.5" in note
    assert folder.claim(changed, "text") == []


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="no run of vitcompress"):
        RunFolder(tmp_path).claim(Recipe(), "text")


def test_stage_folders_are_named_by_order_and_name() -> None:
    assert RunFolder("d").stage(2, "QuantAware") == Path("d/stages/02-quant-aware")
    assert RunFolder("d").stage(12, "quant_aware") == Path("d/stages/12-quant-aware")


def test_a_stage_is_reused_only_with_its_own_key(tmp_path: Path) -> None:
    folder = tmp_path / "01-prune"
    said: list[str] = []

    def log(event: str, message: str = "", **fields: object) -> None:
        said.append(message)

    assert open_stage(folder, "a", log) is None
    (folder / "state").mkdir()
    assert open_stage(folder, "a", log) is None  # interrupted: what is there stays
    assert (folder / "state").is_dir()
    write_sealed(folder / "done.json", {"key": "a", "report": {"name": "Prune"}}, [])
    done = open_stage(folder, "a", log)
    assert done is not None
    assert done["report"] == {"name": "Prune"}
    assert said == []
    assert open_stage(folder, "b", log) is None
    assert len(said) == 1 and "other inputs" in said[0]
    assert not (folder / "state").exists()
    assert not (folder / "done.json").exists()


def test_differences_names_nested_keys_and_counts_the_rest() -> None:
    old = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert differences(old, {"a": {"b": 1, "c": 3}, "d": [1]}) == "a.c: 2 -> 3"
    assert differences(old, {"a": {"b": 1, "c": 2}, "d": [1], "e": {"f": 1}}) == "e.f: unset -> 1"
    assert differences({"x": 1, "y": 1}, {"x": 2, "y": 2}, limit=1) == "x: 1 -> 2; and 1 more"


def test_keys_depend_on_content_only() -> None:
    one = {"b": torch.ones(2, 3), "a": torch.arange(4, dtype=torch.bfloat16)}
    same = {"a": torch.arange(4, dtype=torch.bfloat16), "b": torch.ones(3, 2).t()}
    assert tensors_hash(one) == tensors_hash(same)
    assert tensors_hash(one) != tensors_hash({**one, "b": torch.ones(3, 2)})
    flipped = torch.ones(2, 3)
    flipped[1, 2] = -1
    assert tensors_hash(one) != tensors_hash({**one, "b": flipped})
    first, second = Recipe().data, Recipe().data
    second.train, second.workers = "/elsewhere", 7
    assert chain_key(data_part(first)) == chain_key(data_part(second))
    second.augment.hflip = 0.0
    assert chain_key(data_part(first)) != chain_key(data_part(second))
