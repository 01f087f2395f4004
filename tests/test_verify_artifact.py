"""The check of a freshly exported file against its torch model."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from export_support import SIZE, VIT, base_model, images, standard_artifact

from act.backends import get_backend
from act.data.batch import Batch
from act.errors import ExportError
from act.export import export_onnx
from act.models import logits
from act.verify.artifact import SAMPLE, check_artifact, compare, runs_on_integers, score
from act.verify.parity import torch_logits


def batches(count: int = 2, labels: torch.Tensor | None = None) -> list[Batch]:
    return [Batch(images(20, seed=seed), labels) for seed in range(count)]


def test_score_is_that_of_the_file() -> None:
    path = standard_artifact()[0] / "model.onnx"
    session = get_backend("onnxruntime").load(path)
    predictions = np.concatenate([session.run(b.images.numpy()).argmax(1) for b in batches()])
    labels = torch.from_numpy(predictions[:20].copy())
    labels[:5] = (labels[:5] + 1) % 10
    found = score(session, batches(1, labels))
    assert found["top1"] == 75.0 and found["images"] == 20
    unlabelled = score(session, batches())
    assert np.array_equal(unlabelled["predictions"], predictions) and "top1" not in unlabelled


def test_honest_file() -> None:
    folder, model = standard_artifact()
    found = check_artifact(folder / "model.onnx", model, batches(9))
    assert found.images == SAMPLE and found.agreement >= 98
    with torch.no_grad():
        largest = logits(model(images(64))).abs().max()
    assert 0 <= found.max_abs_diff < largest / 4
    figures = found.figures()
    assert figures["integer_products"] == 9 and figures["float_products"] == len(figures["float_nodes"]) == 5


def test_limits() -> None:
    folder, model = standard_artifact()
    path = folder / "model.onnx"
    with pytest.raises(ExportError, match=r"agrees with the torch model on 98\.50 % .* 99\.00"):
        check_artifact(path, model, batches(), agreement=98.5)
    shifted = copy.deepcopy(model)
    with torch.no_grad():
        shifted.get_submodule("head").bias += 0.01  # type: ignore[operator]
    assert check_artifact(path, shifted, batches()).max_abs_diff >= 0.009
    with pytest.raises(ExportError, match=r"export\.max_abs_diff is 0\.001"):
        check_artifact(path, shifted, batches(), max_abs_diff=0.001)


def test_logits_that_are_not_finite_are_no_agreement() -> None:
    model = standard_artifact()[1]

    class Broken:
        """All but one of the images have no number for the last class."""

        def run(self, images: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
            found = torch_logits(model, images).copy()
            found[1:, found[1:].argmin(-1)] = np.nan
            return found

    with pytest.raises(ExportError, match="differ from the torch model's by up to nan"):
        compare("model.onnx", Broken(), model, batches(), agreement=100.0)


def test_file_of_another_model() -> None:
    folder, model = standard_artifact()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_submodule("head").bias += torch.arange(10.0)
    with pytest.raises(ExportError, match="agrees with the torch model on"):
        check_artifact(folder / "model.onnx", other, batches())


def test_quantised_model_whose_file_runs_in_floating_point(tmp_path: Path) -> None:
    plain = base_model(**VIT)
    export_onnx(plain, tmp_path / "float.onnx", SIZE)
    model = standard_artifact()[1]
    assert runs_on_integers(model) and not runs_on_integers(plain)
    with pytest.raises(ExportError, match="none of its 14 products runs on integers"):
        check_artifact(tmp_path / "float.onnx", model, batches())
    found = check_artifact(tmp_path / "float.onnx", plain, batches(), min_agreement=100.0)
    assert found.census.integer == 0 and found.max_abs_diff < 1e-4


def test_no_images() -> None:
    folder, model = standard_artifact()
    with pytest.raises(ExportError, match="there are no images"):
        check_artifact(folder / "model.onnx", model, [])
