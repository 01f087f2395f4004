"""Numeric agreement between an exported file and the torch model it was made from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from act.backends.onnxruntime import OnnxRuntime, OnnxSession, open_session
from act.models import logits
from act.quant.fake_quant import FakeQuantize
from act.verify.onnx_file import OnnxFile, without_activation_rounding
from act.verify.rules import Broken

IMAGES = 4
# Relative L2 differences of logits. Without activation rounding only float32 arithmetic differs. With it, a last-bit
# difference flips a code now and then, and a deep network magnifies that to the size of the quantisation noise.
EXACT_LIMIT = 1e-4
ROUNDED_LIMIT = 0.5

Logits = npt.NDArray[Any]


def relative_difference(a: Logits, b: Logits) -> float:
    """||a - b|| / ||b - mean(b)|| over logits [B, classes], the mean taken per image."""
    spread = float(np.linalg.norm(b - b.mean(axis=-1, keepdims=True)))
    return float(np.linalg.norm(a - b)) / max(spread, 1e-12)


def torch_logits(model: nn.Module, images: npt.NDArray[np.float32]) -> Logits:
    """Logits [B, classes] of `model` for images [B, C, H, W], on the model's own device."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        output: Logits = logits(model(torch.from_numpy(images).to(device))).float().numpy(force=True)
    return output


def check_parity(file: OnnxFile, model: nn.Module) -> str:
    """Compare file and model on seeded noise; Broken if too far apart.

    Once as they are, in the runtime as users run it; once without activation rounding and without the runtime's
    optimisations, which replace float products with approximate integer ones too.
    """
    images = np.random.default_rng(0).standard_normal((IMAGES, *file.input_size()), dtype=np.float32)
    found = relative_difference(OnnxRuntime().load(file.path).run(images), torch_logits(model, images))
    if not found <= ROUNDED_LIMIT:
        raise Broken(f"its logits differ from the torch model's by {found:.2g} (relative); allowed {ROUNDED_LIMIT:g}")
    rounding = [m for m in model.modules() if isinstance(m, FakeQuantize) and m.channels is None and m.enabled]
    with _disabled(rounding), tempfile.TemporaryDirectory(prefix="vitcompress-") as folder:
        path = Path(folder) / "model.onnx"
        onnx.save_model(without_activation_rounding(file), str(path))
        session = OnnxSession(open_session(path, optimize=False))
        exact = relative_difference(session.run(images), torch_logits(model, images))
    if not exact <= EXACT_LIMIT:
        raise Broken(
            f"without activation rounding, its logits differ from the torch model's by {exact:.2g} (relative); "
            f"allowed {EXACT_LIMIT:g}"
        )
    return f"relative difference {found:.1e}, without activation rounding {exact:.1e}"


@contextmanager
def _disabled(quantizers: list[FakeQuantize]) -> Iterator[None]:
    try:
        for quantizer in quantizers:
            quantizer.enabled = False
        yield
    finally:
        for quantizer in quantizers:
            quantizer.enabled = True
