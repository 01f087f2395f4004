"""Evaluation, counts, goals, timing and the report page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from page_support import check_whole
from torch import nn

from act.data.batch import Batch
from act.errors import ActError, InputError
from act.recipe.schema import Recipe, TargetConfig
from act.run.baseline import count_macs, count_params
from act.run.evaluate import evaluate
from act.run.goals import check_measurable, judge, status_of
from act.run.metrics import check_order
from act.run.page import render
from act.run.result import RunResult
from act.run.timing import time_in_turns, unsteady


class Echo(nn.Module):
    """Logits are the first row of pixels; returned as a tuple of two heads whose mean counts."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        row = images[:, 0, 0]
        return row + 1, row - 1


def batches(labels: list[int] | None, predictions: list[int], size: int = 3) -> list[Batch]:
    images = torch.zeros(len(predictions), 3, 4, 4)
    images[torch.arange(len(predictions)), 0, 0, torch.tensor(predictions)] = 1
    parts = range(0, len(predictions), size)
    return [Batch(images[i : i + size], None if labels is None else torch.tensor(labels[i : i + size])) for i in parts]


def test_evaluate_counts_over_uneven_batches() -> None:
    model = Echo().train()
    result = evaluate(model, batches([0, 1, 2, 3, 0], [0, 1, 2, 0, 1]), np.array([0, 0, 2, 0, 1]))
    assert result["top1"] == pytest.approx(60.0)
    assert result["agreement"] == pytest.approx(80.0)
    assert result["images"] == 5
    assert result["predictions"].tolist() == [0, 1, 2, 0, 1]
    assert model.training


def test_evaluate_without_labels_has_no_top1() -> None:
    assert "top1" not in evaluate(Echo(), batches(None, [0, 1]))


def test_evaluate_refuses_another_number_of_images_and_none() -> None:
    with pytest.raises(InputError, match="2 images now and 3"):
        evaluate(Echo(), batches(None, [0, 1]), np.array([0, 1, 2]))
    with pytest.raises(InputError, match="no images"):
        evaluate(Echo(), [])


def test_a_shuffled_validation_set_is_noticed() -> None:
    first = evaluate(Echo(), batches(None, [0, 1, 2, 3], size=2))
    check_order(evaluate(Echo(), batches(None, [0, 1, 2, 3], size=2)), first)
    with pytest.raises(ActError, match="another order"):
        check_order(evaluate(Echo(), batches(None, [2, 1, 0, 3], size=2)), first)


def test_macs_of_a_vit_are_those_of_its_matrix_products() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)
    tokens, width = 5, 192
    block = tokens * width * (3 * width + width + 8 * width) + 2 * tokens * tokens * width
    expected = 4 * width * 3 * 16 * 16 + 2 * block + width * 5
    assert count_macs(model, (3, 32, 32)) == expected
    assert count_params(model) == sum(p.numel() for p in model.parameters())


def artifact() -> dict[str, Any]:
    return {
        "format": "onnx",
        "path": "artifact/model.onnx",
        "sha256": "ab",
        "bytes": 1000,
        "top1": 70.0,
        "agreement": 96.0,
        "latency": {"onnxruntime": {"1": {"median_ms": 5.0, "p90_ms": 6.0}}},
        "speedup": {"onnxruntime": {"1": 2.0}},
    }


def baseline() -> dict[str, Any]:
    latency = {"onnxruntime": {"1": {"median_ms": 10.0, "p90_ms": 11.0}}}
    return {"top1": 71.0, "params": 10, "macs": 20, "bytes": 4000, "latency": latency}


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (TargetConfig(), "no_target"),
        (TargetConfig(max_drop=1.0), "met"),
        (TargetConfig(max_drop=0.9), "missed"),
        (TargetConfig(min_agreement=96.0, bytes=1000, latency_ms=5.0, speedup=2.0), "met"),
        (TargetConfig(min_agreement=96.1), "missed"),
        (TargetConfig(bytes=999), "missed"),
        (TargetConfig(max_drop=1.0, speedup=2.1), "missed"),
    ],
)
def test_goals_are_judged_at_their_limits(target: TargetConfig, status: str) -> None:
    assert status_of(judge(target, baseline(), artifact(), "top1")) == status


def test_a_drop_of_agreement_counts_from_100_and_an_error_metric_may_not_rise() -> None:
    assert judge(TargetConfig(max_drop=4.0), {"params": 1}, {"agreement": 96.0, "bytes": 1}, "agreement")[0].met
    goals = judge(TargetConfig(max_drop=1.0), {"rmse": 3.0}, {"rmse": 5.0, "bytes": 1}, "rmse", "min")
    assert not goals[0].met
    assert goals[0].measured == 2.0


def test_top1_without_labels_is_refused() -> None:
    recipe = Recipe()
    recipe.train.metric, recipe.train.stages = "top1", {"QuantAware": {"metric": "top1"}, "Prune": {"epochs": 1}}
    check_measurable(recipe, has_val=True, has_callback=False)
    check_measurable(recipe, has_val=True, has_callback=True, val_labelled=False)
    with pytest.raises(InputError, match="top1 needs labels") as caught:
        check_measurable(recipe, has_val=True, has_callback=False, val_labelled=False)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "TrainConfig.metric",
        "TrainConfig.stages.QuantAware.metric",
    ]


def test_less_accuracy_is_not_what_goals_can_ask_for() -> None:
    recipe = Recipe()
    recipe.train.metric_mode = "min"
    check_measurable(recipe, has_val=True, has_callback=True)
    with pytest.raises(InputError, match="metric_mode: min is for a metric of the caller's own"):
        check_measurable(recipe, has_val=True, has_callback=False)


def test_goals_that_cannot_be_measured_are_refused_together() -> None:
    recipe = Recipe()
    recipe.target = TargetConfig(max_drop=1.0, min_agreement=90.0, latency_ms=1.0, device="cuda")
    recipe.export.formats = ["onnx", "tflite"]
    with pytest.raises(InputError) as caught:
        check_measurable(recipe, has_val=False, has_callback=False)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "export.formats",
        "target.max_drop",
        "target.min_agreement",
        "target.backend",
    ]


def test_timing_takes_turns() -> None:
    calls: list[str] = []
    runs = {"a": lambda images: calls.append("a"), "b": lambda images: calls.append("b")}
    found = time_in_turns(runs, [2], (3, 4, 4), seconds=0.0, rounds=(4, 4))
    # Three calls of each to warm up; in each round two that are not timed and one that is.
    assert "".join(calls) == "aaabbb" + ("aaabbb" + "bbbaaa") * 2
    assert set(found["a"]["2"]) == {"median_ms", "p90_ms"}


def test_unsteady_timings_are_named() -> None:
    steady, busy = {"median_ms": 1.0, "p90_ms": 2.9}, {"median_ms": 1.0, "p90_ms": 3.1}
    assert unsteady({"a": {"1": steady, "8": busy}, "b": {"1": steady}}) == ["a, batch 8"]


def report() -> dict[str, Any]:
    evil = "<script>alert(1)</script>"
    return {
        "schema": 1,
        "name": evil,
        "status": "missed",
        "goals": [{"met": False, "text": f"{evil} & more"}],
        "baseline": baseline(),
        "stages": [
            {
                "name": "Prune",
                "seconds": 3.2,
                "peak_rss_mb": 500.0,
                "top1": 69.0,
                "agreement": 90.0,
                "steps": 10,
                "layers_done": ["a"],
                "layers_left": [{"name": "head", "reason": evil}],
                "invariants": [{"name": "2:4", "holds": True, "detail": ""}],
            }
        ],
        "artifacts": [artifact()],
        "environment": {"python": evil, "packages": {"torch": evil}},
    }


def test_the_page_is_whole_escaped_and_asks_for_nothing() -> None:
    events = [
        {
            "event": "train_step",
            "stage": "<b>",
            "step": step,
            "loss": 3.0,
            "losses": {"<kl>": 1.0 / step, "mse": 2.0},
            "values": {
                "mask_flip_rate": 0.1 / step,
                "mask_flip_rate.blocks.0.<q>": 0.2,
                "mask_flip_rate.head.<q>": 0.1,
            },
        }
        for step in (1, 2, 3)
    ]
    shown = report()
    shown["stages"][0]["name"] = "<b>"  # the stage that the events are of
    page = render(shown, "name: <img src=x>", events)
    assert "<script" not in page and "<img" not in page and "<kl>" not in page
    check_whole(page.replace("&lt;img src=x&gt;", ""))
    # Two terms and their total, two layers and theirs, each with a sample in the legend but for equal kinds, and the
    # level of the stage.
    assert page.count("<polyline") == 3 + 3 + 3 + 2 + 1
    assert "mask flip rate" in page and page.count("<title>blocks.0.&lt;q&gt;</title>") == 1
    assert page.count("</svg>&lt;q&gt;</span>") == 1  # layers of one kind share a colour and its name
    assert "2.00x as fast" in page and "4.00x smaller" in page and "-1.00" in page
    assert "not every goal is met" in page


def test_a_result_shows_itself(tmp_path: Path) -> None:
    result = RunResult("met", 0, tmp_path, report())
    text = repr(result)
    assert str(result) == text and text.splitlines()[0] == f"RunResult: met, {tmp_path}"
    assert text.splitlines()[1].startswith("Top-1 71.00 → 70.00 (-1.00), 4.00x smaller")
    assert any(line.split() == ["top-1", "71.00", "70.00", "-1.00"] for line in text.splitlines())
    html = result._repr_html_()
    check_whole(html)
    assert "<th>met</th>" in html and "2.00x as fast" in html and str(tmp_path / "report.html") in html
