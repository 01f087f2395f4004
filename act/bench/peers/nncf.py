"""NNCF's post-training quantisation of an OpenVINO model."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from act.backends.base import Images
from act.backends.signal_stack import kept_signal_stack
from act.bench.peers.base import Peer


def _missing() -> str | None:
    absent = [name for name in ("nncf", "openvino") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed; pip install 'vitcompress[peers]'" if absent else None


def _quantize(original: Path, images: Sequence[Images], folder: Path) -> Path:
    # It reports its progress on stdout, where programs expect our JSON.
    with contextlib.redirect_stdout(sys.stderr), kept_signal_stack():
        import nncf
        import openvino

        nncf.set_log_level(logging.ERROR)
        quantized = nncf.quantize(
            openvino.Core().read_model(str(original)),
            nncf.Dataset(list(images)),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(images),
        )
    target = folder / "nncf_ptq.xml"
    openvino.save_model(quantized, str(target), compress_to_fp16=False)
    return target


PEER = Peer(
    "nncf", "quantize, preset MIXED, ModelType.TRANSFORMER, fast bias correction, as OpenVINO IR", _missing, _quantize
)
