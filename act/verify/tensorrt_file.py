"""The check that a TensorRT file holds the model of the main file beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from act.backends.onnxruntime import OnnxRuntime
from act.export.half import NORMAL, half, half_scale
from act.export.onnx_graph import Array, dequantized
from act.verify.onnx_file import OnnxFile
from act.verify.parity import IMAGES, ROUNDED_LIMIT, relative_difference
from act.verify.rules import Broken
from act.verify.tensorrt import ERROR, lint_file

_HALF_STEP = 0.5 + 1e-3  # of an integer, how far codes computed anew for a rounded scale may lie from the old value


def tensorrt_file(main: OnnxFile, path: Path) -> str:
    """Constants are those of `main` in FP16, integers are the same, no rule of TensorRT is broken, and on seeded noise
    both files give the same logits up to rounding."""
    file = OnnxFile(path)
    errors = [f"{item.node}: {item.text}" for item in lint_file(path) if item.level == ERROR]
    if errors:
        raise Broken("; ".join(errors[:3]))
    count = 0
    for name, array in file.constants.items():
        wanted = main.constants.get(name)
        if wanted is None:
            layer = name.removesuffix(".weight_float")
            if layer == name or f"{layer}.weight_int8" not in main.constants:
                continue
            wanted = _dequantized(main, layer)
        count += 1
        if not _same(file, main, name, array, wanted):
            raise Broken(f"{name}: not the value of {main.path.name}")
    images = np.random.default_rng(0).standard_normal((IMAGES, *main.input_size()), dtype=np.float32)
    logits = [OnnxRuntime().load(item).run(images) for item in (file.path, main.path)]
    found = relative_difference(*logits)
    if not found <= ROUNDED_LIMIT:
        raise Broken(f"its logits differ from those of {main.path.name} by {found:.2g} (relative)")
    return f"{count} constants, relative difference {found:.1e}"


def _same(file: OnnxFile, main: OnnxFile, name: str, array: Array, wanted: Array) -> bool:
    if array.shape != wanted.shape:
        return False
    if wanted.dtype == np.float32 and array.dtype == np.float16:
        if name.endswith(".scale"):
            return np.array_equal(array, half_scale(wanted, name))
        # A weight that was dequantised may have been multiplied in another order.
        tolerance = 1e-3 if name.endswith(".weight_float") else 0.0
        return np.allclose(array.astype(np.float64), half(wanted, name).astype(np.float64), tolerance, 0)
    layer = name.removesuffix(".weight_int8")
    if np.array_equal(array, wanted) or layer == name:
        return np.array_equal(array, wanted)
    # Integers of channels whose scale FP16 holds with few digits are computed anew for the scale that is stored.
    old, new = (item.constant(f"{layer}.weight_quantizer.scale").astype(np.float64) for item in (main, file))
    shape = [-1 if axis == _axis(array) else 1 for axis in range(array.ndim)]
    difference = np.abs(array * new.reshape(shape) - wanted * old.reshape(shape))
    allowed = np.where(old < NORMAL, _HALF_STEP, 0.0) * new
    moved = (array != wanted) & (difference > allowed.reshape(shape))
    return not moved.any() and not array[wanted == 0].any()


def _axis(array: Array) -> int:
    """Axis of the output channels: a linear weight is stored [in, out], a convolution's [out, in, kh, kw]."""
    return 1 if array.ndim == 2 else 0


def _dequantized(main: OnnxFile, layer: str) -> Array:
    codes, scale = main.constant(f"{layer}.weight_int8"), main.constant(f"{layer}.weight_quantizer.scale")
    return dequantized(codes, scale, _axis(codes))
