"""What a run keeps when it is continued, forced or shared with others, and what it makes anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from act.recipe.load import load_recipe
from act.recipe.schema import TrainConfig
from act.run import stages
from act.run.keys import train_part
from act.run.runner import run

WORDS = ["~QuantAware", "~QuantPost", "data.limit_val=40", "data.workers=0", "data.limit_train=64"]
WORDS += ["data.batch_size=16", "TrainConfig.epochs=1", "TrainConfig.stages={}"]
WORDS += ["export.benchmark=false", "target.max_drop=null"]


def never(*args: object, **kwargs: object) -> None:
    raise AssertionError("trained again")


def test_how_often_progress_is_written_trains_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(load_recipe("quickstart", WORDS), tmp_path / "run").report
    monkeypatch.setattr(stages, "recover", never)
    changed = [*WORDS, "TrainConfig.logging_iter=1", "TrainConfig.save_iter=3", "TrainConfig.trackers=[tensorboard]"]
    again = run(load_recipe("quickstart", changed), tmp_path / "run", force=True).report
    assert again["stages"] == first["stages"]
    named = load_recipe("quickstart", changed)
    named.name = "another"
    assert run(named, tmp_path / "run", force=True).report["name"] == "another"
    with pytest.raises(AssertionError, match="trained again"):
        run(load_recipe("quickstart", [*changed, "TrainConfig.learning_rate=1e-5"]), tmp_path / "run", force=True)


def test_the_metric_counts_where_it_chooses_weights() -> None:
    top1, agreement = TrainConfig(metric="top1"), TrainConfig(metric="agreement")
    assert train_part(top1) == train_part(agreement)
    top1.eval_iter = agreement.eval_iter = 2
    assert train_part(top1) != train_part(agreement)


def test_damage_in_a_shared_folder_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, shared = load_recipe("quickstart", WORDS), tmp_path / "shared"
    run(recipe, tmp_path / "first", shared=shared)
    (file,) = shared.glob("*/model.safetensors")
    whole = file.read_bytes()
    file.unlink()  # a second name of the first run's file, which stays
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    run(recipe, tmp_path / "second", shared=shared)
    assert file.read_bytes() == whole
    monkeypatch.setattr(stages, "recover", never)
    run(recipe, tmp_path / "third", shared=shared)


def test_skipped_images_are_said_and_remembered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(16):
        Image.new("L", (32, 32), number * 8).save(photos / f"{number:02d}.png")
    (photos / "broken.png").write_bytes(b"no image")
    words = [*WORDS, f"data.train={photos}", "data.limit_train=null", "data.batch_size=8"]
    first = run(load_recipe("quickstart", words), tmp_path / "run").report
    assert first["data"]["skipped"] == ["photos: broken.png"]
    assert "1 unreadable images are left out" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run" / "artifact")  # delivered anew, and no training image is read for that
    run(load_recipe("quickstart", words), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "report.json").read_text())["data"]["skipped"] == ["photos: broken.png"]
