"""NVIDIA ModelOpt's ONNX post-training quantisation, on the CPU."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from act.backends.base import Images
from act.bench.peers.base import Peer


def _missing() -> str | None:
    # Without its extra `onnx` it can be imported and cannot quantise.
    absent = [name for name in ("modelopt", "onnx_graphsurgeon") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed; pip install 'nvidia-modelopt[onnx]'" if absent else None


def _quantize(original: Path, images: Sequence[Images], folder: Path) -> Path:
    target = folder / "modelopt_ptq.onnx"
    # It keeps intermediate files beside what it reads, which may be a run's folder.
    copy = folder / "modelopt_original.onnx"
    shutil.copyfile(original, copy)
    with contextlib.redirect_stdout(sys.stderr):
        from modelopt.onnx.quantization import quantize

        quantize(
            onnx_path=str(copy),
            quantize_mode="int8",
            calibration_data=np.concatenate(list(images)),
            calibration_method="max",
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=str(target),
        )
    copy.unlink()
    return target


PEER = Peer("modelopt", "onnx.quantization.quantize, int8, max calibration, float32 elsewhere", _missing, _quantize)
