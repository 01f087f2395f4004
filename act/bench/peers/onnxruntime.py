"""ONNX Runtime's own static quantiser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from act.backends.base import Images
from act.backends.onnxruntime import OnnxRuntime
from act.bench.peers.base import Peer

OPERATORS = ("MatMul", "Gemm", "Conv")


class _Reader:
    """What the quantiser calls a CalibrationDataReader."""

    def __init__(self, name: str, images: Sequence[Images]) -> None:
        self._feeds: Iterator[dict[str, Images]] = iter([{name: image} for image in images])

    def get_next(self) -> dict[str, Images] | None:
        """The next input, None at the end."""
        return next(self._feeds, None)


def _quantize(original: Path, images: Sequence[Images], folder: Path) -> Path:
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, target = folder / "prepared.onnx", folder / "onnxruntime_ptq.onnx"
    # Its documentation asks for this step first; symbolic shapes add nothing where only the batch is open.
    quant_pre_process(str(original), str(prepared), skip_symbolic_shape=True)
    held = onnx.load(str(original), load_external_data=False).graph.input[0].name
    reader: Any = type("Reader", (_Reader, CalibrationDataReader), {})(held, images)
    quantize_static(
        str(prepared),
        str(target),
        reader,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(OPERATORS),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )
    prepared.unlink()
    return target


PEER = Peer(
    "onnxruntime",
    "quantize_static, QDQ, int8 activations and weights, per channel, MatMul, Gemm and Conv, min-max",
    OnnxRuntime().available,
    _quantize,
)
