"""The original model: what it scores, costs and weighs; everything else in a run is compared with this."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from act.errors import ExportError, InputError
from act.run.atomic import replacing
from act.run.evaluate import Predictions, evaluate
from act.run.folder import DONE, open_stage
from act.run.large_pages import large_pages
from act.run.sealed import write_sealed
from act.run.shared import publish

if TYPE_CHECKING:
    from act.context import Context


@dataclass(frozen=True)
class Baseline:
    """The original's figures (`top1` and `metric` where they could be measured, `params`, `macs`, `bytes`).

    `predictions` int64 [images] on the validation set, None without one; `onnx` its FP32 export.
    """

    figures: dict[str, Any]
    predictions: Predictions | None
    onnx: Path


def count_params(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one image [channels, height, width] in convolutions and matrix products.

    Attention is counted as the two matrix products it is, whichever fused kernel the model would use.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    counter = FlopCounterMode(display=False)
    training = model.training
    model.eval()
    try:
        # The unfused form of attention is the one whose matrix products the counter sees.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(torch.zeros(1, *input_size, device=device))
    finally:
        model.train(training)
    return int(counter.get_total_flops()) // 2


def measure_baseline(model: nn.Module, folder: Path, key: str, ctx: Context, shared: Path | None = None) -> Baseline:
    """Measure the original, or load what was measured before under the same `key`, here or in `shared`."""
    onnx, saved = folder / "model_fp32.onnx", folder / "predictions.npy"
    done = open_stage(folder, key, ctx.log, shared)
    if done is not None:
        predictions = np.load(saved, allow_pickle=False) if done["predictions"] else None
        return Baseline(done["figures"], predictions, onnx)
    figures: dict[str, Any] = {}
    predictions = None
    if ctx.data is not None and ctx.data.has_val:
        with large_pages():
            scored = evaluate(model, ctx.data.val(ctx.recipe.data.batch_size))
        predictions = scored["predictions"]
        figures |= {name: scored[name] for name in ("images", "top1", "order") if name in scored}
        with replacing(saved) as temporary:
            np.save(temporary, predictions)
    figures |= {"params": count_params(model), "macs": count_macs(model, ctx.input_size)}
    figures["bytes"] = _export(model, onnx, ctx)
    files = [onnx.name, *([saved.name] if predictions is not None else [])]
    record = {"key": key, "figures": figures, "predictions": predictions is not None}
    write_sealed(folder / DONE, record, files)
    publish(folder, key, shared)
    return Baseline(figures, predictions, onnx)


def _export(model: nn.Module, path: Path, ctx: Context) -> int:
    from act.export.onnx import export_onnx

    try:
        export_onnx(model, path, ctx.input_size, ctx.recipe.export.opset, {"model": ctx.recipe.model.name or "module"})
    except ExportError as error:
        raise InputError(
            f"model: {error}; a forward must do the same whatever the pixels are: no `if` and no loop on their values"
        ) from error
    return path.stat().st_size
