"""Run folders that are full, read-only, damaged, or no longer what their run began with."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fault_support as support
import pytest
import torch
from safetensors.torch import save_file
from test_run_resume import CONFIG, Loader, job, same_artifact, short_timing, whole  # noqa: F401  # fixtures

from act.cli.main import main
from act.errors import InputError, StorageError
from act.recipe.schema import Recipe
from act.run.atomic import PARTIAL, replacing, write_json
from act.run.faults import explain
from act.run.folder import RunFolder
from act.run.lock import LOCK
from act.run.log import EventLog
from act.run.result import RunResult
from act.run.sealed import Damaged, read_sealed, write_sealed


def test_a_damaged_preparation_is_said_and_repeated(tmp_path: Path, whole: RunResult) -> None:  # noqa: F811
    train = Loader()
    compression = job(tmp_path / "run", train)
    train.given, train.fail_at = 0, 8
    with pytest.raises(KeyboardInterrupt):
        compression.compress()
    [kept] = (tmp_path / "run" / "stages").glob("*/prepared/model.safetensors")
    kept.write_bytes(kept.read_bytes()[:-1])
    job(tmp_path / "run", Loader()).compress()
    same_artifact(whole.folder, tmp_path / "run")
    said = [event.get("message", "") for event in support.events(tmp_path / "run")]
    assert f"{kept} was altered or cut short; prepared again" in said


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(path)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting is not allowed here; test_a_file_that_may_not_grow_is_named needs no mount")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = support.write_recipe(tmp_path), disk / "run"
    for size in ("200k", "1000k"):  # full when the original is exported; when a checkpoint is saved
        remount(disk, f"size={size}")
        last = support.finish(recipe, folder, code=1).splitlines()[-1]
        assert (
            last.startswith(f"vitcompress: error: {folder}/") and "cannot be written (No space left on device)" in last
        )
        assert last.endswith("the same command goes on")
        assert not list(disk.rglob(f"{PARTIAL}*"))  # what did not fit is gone
    assert (folder / "stages" / "01-prune" / "key.json").is_file()
    remount(disk, "ro")
    assert main(["run", str(recipe), "--dir", str(folder)]) == 2
    assert capsys.readouterr().err == (
        f"vitcompress: error: --dir: {folder} cannot be written (Read-only file system); choose another folder\n"
    )
    remount(disk, "rw,size=64m")
    support.finish(recipe, folder)
    support.finish(recipe, tmp_path / "whole")
    support.same_results(folder, tmp_path / "whole")


def _write_much(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    for number, write in enumerate((_bytes, _tensors)):
        try:
            with replacing(path / "file") as temporary:
                write(temporary)
        except StorageError as error:
            (path / f"error{number}").write_text(str(error))


def _bytes(path: Path) -> None:
    path.write_bytes(b"0" * 100_000)


def _tensors(path: Path) -> None:
    save_file({"a": torch.zeros(100_000)}, path)


def test_a_file_that_may_not_grow_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    process = multiprocessing.get_context("spawn").Process(target=_write_much, args=(tmp_path,))
    process.start()
    process.join()
    for number in (0, 1):
        error = (tmp_path / f"error{number}").read_text()
        assert error.startswith(f"{tmp_path / 'file'}: cannot be written (File too large); what was finished is kept")
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["error0", "error1", "file"]


def test_events_that_cannot_be_written_end_the_run() -> None:
    with pytest.raises(StorageError, match=r"/dev/full: cannot be written \(No space left on device\)"):
        EventLog(Path("/dev/full"))("event")


def test_faults_outside_of_training_are_explained_and_bugs_are_not() -> None:
    full = OSError(28, "No space left on device", "/tmp/x")
    assert explain(full) == "/tmp/x: No space left on device; put that right, and the same command goes on"
    assert str(explain(torch.OutOfMemoryError("CUDA out of memory."))).startswith("out of memory (")
    assert "the GPU failed" in str(explain(RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")))
    assert explain(FileNotFoundError(2, "No such file or directory", "x")) is None
    assert explain(RuntimeError("size mismatch")) is explain(StorageError("x", "full")) is None


def test_a_sealed_record_vouches_for_itself_and_its_files(tmp_path: Path) -> None:
    record = {"a": [1, 2.5, None], "b": {"1": "x"}}
    (tmp_path / "data").write_bytes(b"0123456789")
    path = tmp_path / "record.json"
    assert read_sealed(path) is None
    write_sealed(path, record, ["data"])
    assert read_sealed(path) == record
    text = path.read_bytes()
    for position in range(len(text)):  # every byte counts, but for white space
        changed = bytearray(text)
        changed[position] ^= 1
        path.write_bytes(changed)
        try:
            assert read_sealed(path) == record and text[position : position + 1].isspace()
        except Damaged as damage:
            assert str(path) in str(damage) or str(tmp_path / "data") in str(damage)
    path.write_bytes(text)
    (tmp_path / "data").write_bytes(b"012345678")
    with pytest.raises(Damaged, match="data was altered or cut short"):
        read_sealed(path)


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_the_lock_of_a_dead_process_is_taken_over_and_said(tmp_path: Path) -> None:
    pid = dead_process()
    write_json(tmp_path / LOCK, {"pid": pid, "host": "elsewhere", "started": "2020-02-02 02:02:02"})
    with RunFolder(tmp_path).locked() as note:
        assert note == f"taken over from process {pid} on elsewhere since 2020-02-02 02:02:02, which was killed"
    with RunFolder(tmp_path).locked() as note:
        assert note is None  # who held it last let go by itself
    (tmp_path / LOCK).write_text('{"pid": 1')  # torn
    with RunFolder(tmp_path).locked() as note:
        assert note is None


def _hold_and_fork(path: Path, child: Any, ready: Any) -> None:
    with RunFolder(path).locked():
        if os.fork() == 0:
            child.value = os.getpid()
            ready.set()
        time.sleep(60)


def test_a_worker_that_outlives_a_killed_run_does_not_keep_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    child, ready = context.Value("i", 0), context.Event()
    parent = context.Process(target=_hold_and_fork, args=(tmp_path, child, ready))
    parent.start()
    assert ready.wait(60)
    parent.kill()
    parent.join()
    try:
        with RunFolder(tmp_path).locked() as note:
            assert note is not None and note.startswith(f"taken over from process {parent.pid} on ")
        os.kill(child.value, 0)  # it is still there
    finally:
        os.kill(child.value, signal.SIGKILL)


def test_a_folder_whose_first_write_was_cut_short_can_be_claimed(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    (tmp_path / f"{PARTIAL}settings-abc.json").write_text('{"mo')
    (tmp_path / "stages" / f"{PARTIAL}folder").mkdir(parents=True)
    with pytest.raises(InputError, match="no run of vitcompress"):
        RunFolder(tmp_path).claim(Recipe(), "text")
    (tmp_path / "stages" / f"{PARTIAL}folder").rmdir()
    (tmp_path / "stages").rmdir()
    assert RunFolder(tmp_path).claim(Recipe(), "text") == []
    assert not list(tmp_path.glob(f"{PARTIAL}*"))


def test_other_data_or_weights_are_refused_unless_forced(tmp_path: Path) -> None:
    folder, recipe = RunFolder(tmp_path / "run"), Recipe()
    first = {"model": "a", "data.train": "b", "data.val": "c"}
    assert folder.claim(recipe, "text", first) == []
    assert folder.claim(recipe, "text", first) == []
    with pytest.raises(InputError, match=r"holds a run of other data \(data\.val: names, sizes, labels .*--force to"):
        folder.claim(recipe, "text", first | {"data.val": "d"})
    with pytest.raises(InputError, match=r"a run of another model \(its weights differ\) and of other data \(data\.tr"):
        folder.claim(recipe, "text", {"model": "x", "data.val": "c"})
    other = Recipe()
    other.export.threads = 3
    with pytest.raises(InputError, match="of another recipe"):
        folder.claim(other, "text", first)
    assert folder.claim(other, "text", first, may_change=("export", "target")) == []
    [note] = folder.claim(other, "text", first | {"model": "x"}, force=True)
    assert note.startswith("--force: ") and note.endswith("stages whose inputs are the same are kept")
    assert folder.claim(other, "text", first | {"model": "x"}) == []


def test_damaged_settings_can_be_overruled(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(Recipe(), "text")
    (tmp_path / "settings.json").write_text('{"mod')
    with pytest.raises(InputError, match=r"settings\.json is damaged; .*--force to go on"):
        folder.claim(Recipe(), "text")
    assert len(folder.claim(Recipe(), "text", force=True)) == 1
    assert folder.claim(Recipe(), "text") == []


def test_files_of_a_format_that_is_no_longer_asked_for_go(tmp_path: Path, whole: RunResult) -> None:  # noqa: F811
    both = {"formats": ["onnx", "onnxruntime", "packed"], "benchmark": False}
    assert len(job(tmp_path / "run", Loader(), export=both).compress().report["artifacts"]) == 3
    train = CONFIG["TrainConfig"] | {"train_iter": 1}
    forced = job(tmp_path / "run", Loader(), TrainConfig=train, export={"benchmark": False})
    forced.force = True
    assert len(forced.compress().report["artifacts"]) == 1
    names = [path.name for path in (tmp_path / "run" / "artifact").glob("model.*")]
    assert sorted(names) == ["model.onnx", "model.safetensors"]


def test_other_versions_are_said(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim(Recipe(), "text")
    file = tmp_path / "run" / "environment.json"
    environment = json.loads(file.read_text())
    now = environment["packages"]["torch"]
    environment["packages"]["torch"], environment["python"] = "1.0", "2.7"
    environment["memory_gb"] = 0.5  # changes nothing
    file.write_text(json.dumps(environment))
    [note] = folder.claim(Recipe(), "text")
    assert f"packages.torch: 1.0 -> {now}; python: 2.7 -> 3." in note and "memory" not in note
    assert folder.claim(Recipe(), "text") == []


def test_the_run_says_what_changed_and_keeps_or_replaces_it(tmp_path: Path, whole: RunResult) -> None:  # noqa: F811
    job(tmp_path / "run", Loader()).compress()
    same_artifact(whole.folder, tmp_path / "run")
    with pytest.raises(InputError, match=r"other data \(data\.train"):
        job(tmp_path / "run", Loader(seed=1)).compress()
    same_artifact(whole.folder, tmp_path / "run")  # a refusal leaves everything as it was
    forced = job(tmp_path / "run", Loader(seed=1))
    forced.force = True
    other = forced.compress()
    artifact = "artifact/model.safetensors"
    assert (other.folder / artifact).read_bytes() != (whole.folder / artifact).read_bytes()
    said = [event.get("message", "") for event in support.events(tmp_path / "run")]
    assert any(text.startswith("--force: ") and "data.train" in text for text in said)
    assert any(
        "01-prune: what it holds belongs to other inputs; it is removed and computed anew" in text for text in said
    )


def test_damage_in_a_finished_run_is_said_and_mended(tmp_path: Path, whole: RunResult) -> None:  # noqa: F811
    folder = tmp_path / "run"
    first = job(folder, Loader()).compress()
    report = folder / "report.json"
    report.write_text(report.read_text().replace('"prune"', '"plume"'))  # still readable, and wrong
    before = {}
    for name in ("baseline/model_fp32.onnx", "stages/01-prune/model.safetensors"):
        before[name] = (folder / name).read_bytes()
        (folder / name).write_bytes(before[name][:-3])
    again = job(folder, Loader()).compress()
    same_artifact(whole.folder, folder)
    assert [stage["name"] for stage in again.report["stages"]] == [stage["name"] for stage in first.report["stages"]]
    said = [event.get("message", "") for event in support.events(folder)]
    for name, content in before.items():
        assert (folder / name).read_bytes() == content
        assert any(text.startswith(f"{folder / name} was altered or cut short; ") for text in said)
    assert not list((folder / "stages" / "01-prune" / "state").iterdir())
