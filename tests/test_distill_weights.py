"""Weights of distilled layers from what an earlier stage left: the formula, a run of two stages, the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import act.run.stages as stages
from act.distill.weights import sparse_aware, unweighted, why_equal
from act.errors import InputError
from act.recipe.load import load_recipe, recipe_from_dict
from act.run.log import read_events
from act.run.page import render
from act.run.runner import run
from act.run.sealed import write_sealed
from act.train.progress import WINDOW, Meter

WORDS = [
    "TrainConfig.train_iter=3",
    "TrainConfig.epochs=null",
    "TrainConfig.warmup_iter=0",
    "TrainConfig.batch_size=16",
    "TrainConfig.stages.QuantAware={train_iter: 2, epochs: null}",
    "Distillation.alpha=8.0",
    "Distillation.layer_weights=sparse_aware",
    "export.benchmark=false",
    "data.limit_val=32",
    "data.limit_train=64",
    "data.calibration_images=16",
    "target.max_drop=null",
]
BLOCKS = [f"blocks.{index}" for index in range(4)]


def test_weights_are_the_losses_over_their_mean() -> None:
    # Layer a stayed at 0.2, b at 0.6; their terms weigh 5 and 2, and only the last WINDOW steps count.
    meter = Meter(steps=WINDOW + 1)
    meter.add(1, {"soft": 9.0, "feature.a": 100.0, "feature.b": 100.0}, 8)
    for step in range(WINDOW):
        sign = 1 if step % 2 else -1
        terms = {"soft": 9.0, "feature.a": 5 * (0.2 + sign * 0.1), "feature.b": 2 * (0.6 - sign * 0.2)}
        meter.add(step + 2, terms, 8)
    left = unweighted(meter.losses(), {"a": 5.0, "b": 2.0})
    assert left == {"a": pytest.approx(0.2), "b": pytest.approx(0.6)}
    assert sparse_aware(left) == {"a": pytest.approx(0.5), "b": pytest.approx(1.5)}


def test_a_meter_that_goes_on_has_the_steps_before() -> None:
    whole, first = Meter(steps=8), Meter(steps=8)
    for step in range(1, 6):
        for meter in (whole, first):
            meter.add(step, {"feature.a": 1 / step}, 8)
    second = Meter(8, 5, 1.0, 40, json.loads(json.dumps(list(first.recent))))
    for meter in (whole, second):
        meter.add(6, {"feature.a": 0.1}, 8)
    assert second.losses() == whole.losses()


@pytest.mark.parametrize(
    ("left", "layers", "words"),
    [
        (None, ["a"], "no stage before this one trained"),
        ({"a": 1.0}, [], "no features are compared"),
        ({"a": 1.0, "c": 2.0}, ["a", "b"], "other layers (a, c)"),
        ({"a": 0.0, "b": 0.0}, ["a", "b"], "left no loss"),
    ],
)
def test_where_layers_weigh_the_same_there_is_a_reason(
    left: dict[str, float] | None, layers: list[str], words: str
) -> None:
    assert words in str(why_equal(left, layers))
    assert why_equal({"a": 0.0, "b": 1.0}, ["b", "a"]) is None


def test_losses_of_several_kinds_are_not_compared() -> None:
    section = {"node": ["blocks.0", "blocks.1"], "loss": ["cosine", "l2"], "layer_weights": "sparse_aware"}
    with pytest.raises(InputError, match=r"Distillation\.layer_weights: sparse_aware compares .* write one loss"):
        recipe_from_dict({"Distillation": section})
    with pytest.raises(InputError, match=r"layer_weights: 'aware' is unknown.*allowed: equal, sparse_aware"):
        recipe_from_dict({"Distillation": {"layer_weights": "aware"}})


class Stop(BaseException):
    """Ends a run where a kill would."""


def stop(*args: object) -> None:
    raise Stop


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob("stages/*/metrics.json"))]


def expected(left: dict[str, float]) -> dict[str, Any]:
    """The weights of the second stage's terms: alpha 8 shared by 4 blocks, times loss over mean loss."""
    mean = sum(left.values()) / 4
    return {name: pytest.approx(2.0 * loss / mean) for name, loss in left.items()}


def test_the_second_stage_weighs_layers_by_what_the_first_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, float]] = []
    real = stages.recover

    def recover(model: Any, strategy: Any, objectives: list[Any], *rest: Any) -> Any:
        seen.append(objectives[0].feature_weights())
        if len(seen) == 2:
            raise Stop
        return real(model, strategy, objectives, *rest)

    def run_stages() -> None:
        with pytest.raises(Stop):
            run(load_recipe("quickstart", WORDS), folder)

    monkeypatch.setattr(stages, "recover", recover)
    monkeypatch.setattr("act.run.runner.deliver", stop)  # the stages are what counts here
    folder = tmp_path / "run"
    run_stages()  # stopped when the second stage begins to train
    run_stages()
    first, interrupted, second = seen
    prune, quant = metrics(folder)
    assert first == dict.fromkeys(BLOCKS, 2.0) and "layer_weights" not in prune
    assert list(prune["feature_loss"]) == BLOCKS and all(loss > 0 for loss in prune["feature_loss"].values())
    assert second == interrupted == expected(prune["feature_loss"])
    assert max(second.values()) - min(second.values()) > 0.1
    assert sum(quant["layer_weights"].values()) == pytest.approx(4)
    assert {name: 2.0 * weight for name, weight in quant["layer_weights"].items()} == pytest.approx(second)
    messages = [event["message"] for event in read_events(folder / "events.jsonl") if event["event"] == "distillation"]
    assert "weigh the same here: no stage before" in messages[0] and "blocks.3 " in messages[1]

    # Another first stage: the second is done again with other weights, though nothing else changed.
    done = folder / "stages" / "01-prune" / "done.json"
    record = json.loads(done.read_text())
    record["report"]["feature_loss"]["blocks.0"] *= 3
    del record["sha256"]
    write_sealed(done, record, record.pop("files"))
    run_stages()
    assert len(seen) == 4 and seen[3] == expected(record["report"]["feature_loss"]) != second


def test_the_page_has_a_row_per_layer() -> None:
    base: dict[str, Any] = {"seconds": 1, "peak_rss_mb": 1, "layers_done": [], "layers_left": [], "invariants": []}
    prune = base | {"name": "prune", "feature_loss": {"<a>": 0.125, "b": 0.375}}
    quant = base | {"name": "quant", "feature_loss": {"<a>": 0.1, "b": 0.2}}
    report = {"status": "met", "baseline": {"params": 1, "macs": 1, "bytes": 1}, "artifacts": []}
    page = render(report | {"stages": [prune, quant | {"layer_weights": {"<a>": 0.5, "b": 1.5}}]}, "", [])
    assert "<th class=number>loss left after prune</th><th class=number>weight in quant</th>" in page
    assert "<td>&lt;a&gt;</td><td class=number>0.125</td><td class=number>0.50</td><td class=number>0.1</td>" in page
    assert "Distilled layers" not in render(report | {"stages": [prune, quant]}, "", [])


def test_the_page_says_what_reordering_won() -> None:
    base: dict[str, Any] = {"seconds": 1, "peak_rss_mb": 1, "layers_done": [], "layers_left": [], "invariants": []}
    gain = {"before": 93.866, "after": 94.5, "efficacy": 10.2}
    prune = base | {"name": "prune", "channel_order": {"all": gain, "layers": {"<a>": gain}}}
    report = {"status": "met", "baseline": {"params": 1, "macs": 1, "bytes": 1}, "artifacts": []}
    page = render(report | {"stages": [prune]}, "", [])
    assert "Masks keep 94.50 % of the scores that fit at all, 93.87 % in the old order: 10.2 %" in page
    assert "<td>&lt;a&gt;</td><td class=number>93.87</td><td class=number>94.50</td><td class=number>10.2</td>" in page
    assert "Channel order" not in render(report | {"stages": [base | {"name": "prune"}]}, "", [])
