"""A run that was interrupted, anywhere, ends with the same files as one that was not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import act.run.deliver as deliver
import act.run.stages as stages
import act.run.timing as timing
from act import AutoCompression, load
from act.errors import ActError, InputError
from act.run.log import read_events
from act.run.result import RunResult
from act.strategies.base import Invariant
from act.strategies.prune import Prune

CONFIG: dict[str, Any] = {
    "name": "tiny",
    "Distillation": {"layer_weights": "sparse_aware"},
    "Prune": {"mask": "sr-ste"},
    "QuantAware": {"use_pact": True},
    "TrainConfig": {"train_iter": 6, "save_iter": 2, "logging_iter": 2, "learning_rate": 1e-3},
    "export": {"benchmark_batches": [1]},
}


class Loader:
    """Batches of noise; raises while it gives its `fail_at`-th training batch."""

    def __init__(self, batches: int = 4, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.batches = [torch.randn(8, 3, 16, 16, generator=generator) for _ in range(batches)]
        self.given, self.fail_at = 0, 0

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            self.given += 1
            if self.given == self.fail_at:
                raise KeyboardInterrupt
            yield batch

    def __len__(self) -> int:
        return len(self.batches)


def tiny_model() -> nn.Module:
    torch.manual_seed(3)
    kwargs = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **kwargs)  # type: ignore[no-any-return]


def job(folder: Path, train: Loader, **changes: Any) -> AutoCompression:
    val = list(Loader(2, seed=9).batches)
    return AutoCompression(tiny_model(), CONFIG | changes, train_dataloader=train, eval_dataloader=val, save_dir=folder)


@pytest.fixture(scope="module", autouse=True)
def short_timing() -> Iterator[None]:
    """Time the files for a moment only; how long does not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deliver, "time_in_turns", partial(timing.time_in_turns, seconds=0.0, rounds=(2, 2)))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """An uninterrupted run."""
    return job(tmp_path_factory.mktemp("whole") / "run", Loader()).compress()


def same_artifact(one: Path, other: Path) -> None:
    a, b = (load_file(folder / "artifact" / "model.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name
    names = ("arch.json", "model.onnx")
    for name in names:
        assert (one / "artifact" / name).read_bytes() == (other / "artifact" / name).read_bytes(), name


def test_a_run_interrupted_many_times_ends_with_the_same_files(tmp_path: Path, whole: RunResult) -> None:
    interruptions = 0
    for fail_at in (4, 6, 8, 12, 20, 30, 40, 50):  # each try starts later, so these lie in both stages
        train = Loader()
        compression = job(tmp_path / "run", train)
        train.given, train.fail_at = 0, fail_at
        try:
            compression.compress()
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= 4
    resumed = job(tmp_path / "run", Loader()).compress()
    same_artifact(whole.folder, resumed.folder)
    events = [event["event"] for event in read_events(resumed.folder / "events.jsonl")]
    assert events.count("error") == interruptions
    assert "prepared" in events and "train_resumed" in events


def test_a_stage_that_is_done_is_not_computed_again(
    tmp_path: Path, whole: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("act.run.runner.deliver", stop)
        with pytest.raises(KeyboardInterrupt):
            job(tmp_path / "run", Loader()).compress()
    with monkeypatch.context() as patch:
        patch.setattr(stages, "recover", stop)  # neither stage may train again
        resumed = job(tmp_path / "run", Loader()).compress()
        same_artifact(whole.folder, resumed.folder)
        again = job(tmp_path / "run", Loader()).compress()
        assert again.report == resumed.report
        assert load(resumed.folder, tiny_model()) is not None
        # Damage is noticed: the artifact is made anew instead of being reported as it was.
        (resumed.folder / "artifact" / "model.onnx").write_bytes(b"damaged")
        repaired = job(tmp_path / "run", Loader()).compress()
        same_artifact(whole.folder, repaired.folder)


def test_a_changed_stage_is_computed_again_and_what_precedes_it_is_not(whole: RunResult) -> None:
    folder = whole.folder
    train = CONFIG["TrainConfig"] | {"stages": {"QuantAware": {"train_iter": 2}}}
    with pytest.raises(InputError, match=r"holds a run of another recipe .*QuantAware\.train_iter"):
        job(folder, Loader(), TrainConfig=train).compress()
    before = (folder / "stages" / "01-prune" / "done.json").stat().st_mtime_ns
    artifact = (folder / "artifact" / "model.safetensors").read_bytes()
    compression = job(folder, Loader(), TrainConfig=train)
    compression.force = True
    result = compression.compress()
    assert (folder / "stages" / "01-prune" / "done.json").stat().st_mtime_ns == before
    assert [stage["steps"] for stage in result.report["stages"]] == [6, 2]
    assert (folder / "artifact" / "model.safetensors").read_bytes() != artifact


def test_a_broken_promise_stops_the_run_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promise = Invariant("2:4 along K", False, "blocks.0.attn.qkv: 3 groups with more than 2 nonzeros")
    monkeypatch.setattr(Prune, "invariants", lambda self, model: [promise])
    with pytest.raises(ActError, match=r"promised by prune.*blocks\.0\.attn\.qkv: 3 groups"):
        job(tmp_path / "run", Loader()).compress()
    assert not (tmp_path / "run" / "stages" / "01-prune" / "done.json").exists()


def test_the_report_has_the_agreed_keys(whole: RunResult) -> None:
    folder = whole.folder
    report = json.loads((folder / "report.json").read_text())
    assert {"schema", "status", "recipe_hash", "environment", "data", "baseline", "stages", "artifacts"} <= set(report)
    assert report["data"]["train_images"] == 32 or report["data"]["train_images"] is None
    assert {"params", "macs", "bytes", "latency"} <= set(report["baseline"])
    stage_keys = {"name", "seconds", "peak_rss_mb", "layers_done", "layers_left", "invariants"}
    assert all(stage_keys <= set(stage) for stage in report["stages"])
    assert all(layer["reason"] for stage in report["stages"] for layer in stage["layers_left"])
    artifact = report["artifacts"][0]
    keys = {"format", "path", "bytes", "sha256", "agreement", "max_abs_diff", "latency", "speedup"}
    assert keys <= set(artifact)
    assert (folder / artifact["path"]).stat().st_size == artifact["bytes"]
    page = (folder / "report.html").read_text()
    assert "Before and after" in page and "<polyline" in page
    prune, quant = report["stages"]
    assert set(prune["feature_loss"]) == set(quant["layer_weights"]) == {"blocks.0", "blocks.1"}
    assert "Distilled layers" in page and f"{quant['layer_weights']['blocks.1']:.2f}</td>" in page
