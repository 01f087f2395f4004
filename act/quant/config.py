"""The fields that QuantAware and QuantPost share."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from act.quant.fake_quant import WIDE_BITS
from act.quant.observer import CALIBRATIONS

OP_TYPES = ("conv2d", "linear", "matmul")
GROUP_SIZES = (16, 32, 64, 128, 256)
METHODS = (*CALIBRATIONS, "output")


@dataclass
class QuantConfig:
    """Symmetric integers: one scale per output channel of a weight, one per activation tensor."""

    weight_bits: int = 8  # 2 to 8; below 8 the file keeps int8 codes
    # 2 to 8; 0: inputs stay in floating point (weight-only); 16: executed as two int8 products
    activation_bits: int = 8
    wide_inputs: list[str] = field(default_factory=list)  # globs of layers whose inputs take 16 bits whatever the rest
    # Values along K that share a scale in linear layers, of 4 bits at most; null: a whole output channel. Stored as
    # packed INT4 (opset 21). Where it does not divide a layer's K, that layer has one scale per channel.
    weight_group_size: int | None = None
    quantize_op_types: list[str] = field(default_factory=lambda: ["conv2d", "linear"])  # matmul: q k^T, attn x v
    include: list[str] = field(default_factory=lambda: ["*"])  # globs of module names
    exclude: list[str] = field(default_factory=list)  # of those, globs to leave
    first_and_last: bool = False  # also quantise what the patch embedding and the head read; weights always are
    calibration: str = "output"  # minmax, percentile, mse, entropy, output: how an activation's range is chosen
    percentile: float = 99.999  # of calibration: percentile
    images: int | None = None  # calibration images; None: data.calibration_images
    equalize: bool = True  # flatten activations by factors that move into the weights
    shift: bool = True  # centre skewed inputs (after a GELU) where it halves the layer's error; calibration: output
    # The input of a layer whose error is more than so many times the median layer's stays in floating point, its weight
    # int8. 0: off. Needs equalize. Some pretrained ViTs have one such layer, the others of theirs stay below 10 times.
    outlier_ratio: float = 50.0
    bias_correction: bool = True  # absorb the mean error that quantisation leaves in each layer's output

    def problems(self) -> list[str]:
        """Impossible values, each `key: what; allowed`."""
        found = []
        if not 2 <= self.weight_bits <= 8:
            found.append(f"weight_bits: {self.weight_bits}; allowed: 2 to 8")
        if self.activation_bits not in (0, *range(2, 9), WIDE_BITS):
            allowed = f"2 to 8, {WIDE_BITS}, or 0 for floating point"
            found.append(f"activation_bits: {self.activation_bits}; allowed: {allowed}")
        found += self._group_problems()
        if self.activation_bits in (0, WIDE_BITS) and "matmul" in self.quantize_op_types:
            found.append(
                f"quantize_op_types: matmul multiplies two activations of 8 bits or less, and activation_bits is "
                f"{self.activation_bits}; leave it out"
            )
        for op in self.quantize_op_types:
            if op not in OP_TYPES:
                found.append(f"quantize_op_types: {op!r} is unknown; allowed: {', '.join(OP_TYPES)}")
        if not self.quantize_op_types:
            found.append(f"quantize_op_types: empty, so nothing would be quantised; allowed: {', '.join(OP_TYPES)}")
        if self.calibration not in METHODS:
            found.append(f"calibration: {self.calibration!r} is unknown; allowed: {', '.join(METHODS)}")
        if not 50 < self.percentile <= 100:
            found.append(f"percentile: {self.percentile}; allowed: above 50, up to 100")
        if self.outlier_ratio < 0:
            found.append(f"outlier_ratio: {self.outlier_ratio}; allowed: 0 (off) or more")
        if self.images is not None and self.images < 1:
            found.append(f"images: {self.images}; allowed: 1 or more")
        return found

    def remarks(self) -> list[str]:
        """Where fewer bits buy no smaller or faster file, `key: sentence`."""
        found = []
        if self.weight_bits < 8 and self.weight_group_size is None:
            found.append(
                f"weight_bits: {self.weight_bits} bits are kept as int8 codes in ONNX and OpenVINO files, which are no "
                f"smaller and no faster than with 8; the packed format stores {self.weight_bits} bits, and "
                "weight_group_size makes INT4 files"
            )
        if 0 < self.activation_bits < 8:
            found.append(
                f"activation_bits: {self.activation_bits} bits are a simulation: no runtime here, TensorRT 11 among "
                "them, multiplies them, files run their codes as int8; what runs is 8 bits, or weights alone (0). Last "
                "bits flip such coarse codes: at 4 bits expect file and torch, as torch in float32 and float64, to "
                "agree on some 89 % of predictions, and give export.min_agreement a lower value"
            )
        return found

    def input_bits(self, name: str, in_float: bool) -> int:
        """The bits of a layer's input; `in_float`: it would stay in floating point (0) by itself."""
        if any(fnmatchcase(name, glob) for glob in self.wide_inputs):
            return WIDE_BITS
        return 0 if in_float else self.activation_bits

    def _group_problems(self) -> list[str]:
        size = self.weight_group_size
        if size is None:
            return []
        if size not in GROUP_SIZES:
            return [f"weight_group_size: {size}; allowed: {', '.join(map(str, GROUP_SIZES))}, or null"]
        if self.wide_inputs or self.activation_bits == WIDE_BITS:
            return [f"weight_group_size: {size} with 16-bit inputs; those need one scale per output channel"]
        if self.weight_bits > 4:
            return [f"weight_group_size: {size} with weight_bits: {self.weight_bits}; allowed: 4 bits or less"]
        return []


def op_type(layer: Any) -> str:
    """`conv2d` or `linear`."""
    from torch import nn

    return "conv2d" if isinstance(layer, nn.Conv2d) else "linear"
