"""Scoring a model on a stream of batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from act.errors import InputError
from act.models import logits

if TYPE_CHECKING:
    from act.data.batch import Batch

Predictions = npt.NDArray[np.int64]


def evaluate(
    model: nn.Module, batches: Iterable[Batch], reference_predictions: Predictions | None = None
) -> dict[str, Any]:
    """Score `model` in eval mode without gradients; its training mode is put back afterwards.

    Returns `images`, `predictions` (int64 [images], in the order of the stream), `top1` in percent when every
    batch has labels, and `agreement` in percent of `reference_predictions` (same order) when those are given.
    `order` is a SHA-256 over the first image of every batch: it tells whether two passes saw the same stream. Only
    one batch is in memory at a time.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    training = model.training
    model.eval()
    predictions: list[Predictions] = []
    correct, labelled, order = 0, True, hashlib.sha256()
    try:
        with torch.inference_mode():
            for batch in batches:
                order.update(batch.images[:1].contiguous().numpy(force=True).data)
                found = logits(model(batch.images.to(device))).argmax(dim=-1).cpu()
                predictions.append(found.numpy().astype(np.int64))
                if batch.labels is None:
                    labelled = False
                elif labelled:
                    correct += int((found == batch.labels.cpu()).sum())
    finally:
        model.train(training)
    if not predictions:
        raise InputError("data.val: it has no images; name a folder with images or leave data.val out")
    joined = np.concatenate(predictions)
    scored = summarize(joined, correct if labelled else None, reference_predictions)
    return scored | {"order": order.hexdigest()}


def summarize(predictions: Predictions, correct: int | None, reference: Predictions | None) -> dict[str, Any]:
    """The figures of `evaluate` from predictions [images], the number of correct ones, and a reference's [images]."""
    result: dict[str, Any] = {"images": len(predictions), "predictions": predictions}
    if correct is not None:
        result["top1"] = 100.0 * correct / len(predictions)
    if reference is not None:
        if len(reference) != len(predictions):
            raise InputError(
                f"data.val: gave {len(predictions)} images now and {len(reference)} when the original was scored; "
                "it must give the same images in the same order each time"
            )
        result["agreement"] = 100.0 * float((predictions == reference).mean())
    return result
