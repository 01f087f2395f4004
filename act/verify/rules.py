"""Rules about an exported file on its own: standard operators and symmetric Q/DQ.

A rule is a function that returns a detail for the reader or raises `Broken`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from act.errors import ActError
from act.export.onnx_graph import attribute
from act.strategies.base import Invariant
from act.verify.onnx_file import OnnxFile, same_values

_STANDARD = ("", "ai.onnx")
_MIN_OPSET = 19


class Broken(ActError):
    """A rule does not hold; the message says where."""


def checked(name: str, rule: Callable[[], str]) -> Invariant:
    """Run one rule. Whatever a damaged file makes it raise is a broken rule with that message, never a crash."""
    try:
        return Invariant(name, True, rule())
    except ActError as error:
        return Invariant(name, False, str(error))
    except Exception as error:  # a damaged file can break any step of a rule
        return Invariant(name, False, f"cannot be checked: {type(error).__name__}: {error}")


def standard_onnx(file: OnnxFile) -> str:
    """The file passes the ONNX checker, uses standard operators only and an opset whose Q/DQ suit every runtime."""
    try:
        onnx.checker.check_model(file.model, full_check=True)
    except Exception as error:  # the checker and shape inference raise types of their own
        raise Broken(f"the ONNX checker refuses it: {str(error).strip().splitlines()[0]}") from error
    opsets = {entry.domain: entry.version for entry in file.model.opset_import}
    foreign = sorted({node.domain for node in file.graph.node} - set(_STANDARD))
    if foreign or file.model.functions:
        raise Broken(f"operators outside the ONNX standard: {', '.join(foreign) or 'local functions'}")
    opset = opsets.get("", opsets.get("ai.onnx", 0))
    if opset < _MIN_OPSET:
        raise Broken(f"opset {opset}; {_MIN_OPSET} or later is needed")
    return f"opset {opset}, {len(file.graph.node)} nodes"


def symmetric(file: OnnxFile) -> str:
    """Zero points are zeros (int8; uint8 for activations that are never negative); scales finite and > 0, one per
    output channel for weights, else one per tensor."""
    count = 0
    for node in file.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        count += 1
        if attribute(node, "block_size", 0):
            _check_groups(file, node)
            continue
        if len(node.input) < 3:
            raise Broken(f"{node.name}: has no zero point, so its type is not said to be int8")
        scale, zero = file.constant(node.input[1]), file.constant(node.input[2])
        if zero.dtype not in (np.int8, np.uint8) or zero.any():
            raise Broken(f"{node.name}: its zero point must be int8 or uint8 zeros, found {zero.dtype}, {zero.max()}")
        if scale.dtype != np.float32 or not np.isfinite(scale).all() or not (scale > 0).all():
            raise Broken(f"{node.name}: its scale must be float32, finite and > 0")
        if node.input[0] in file.constants:
            _check_channels(file, node)
        elif scale.size != 1:
            raise Broken(f"{node.name}: {scale.size} scales for an activation; one per tensor runs everywhere")
        elif node.op_type == "DequantizeLinear":
            _check_pair(file, node)
    return f"{count} Q/DQ nodes"


def _check_groups(file: OnnxFile, node: onnx.NodeProto) -> None:
    """An INT4 weight [K, N] without zero point, with positive scales [K / block_size, N]."""
    tensor = next((item for item in file.graph.initializer if item.name == node.input[0]), None)
    if tensor is None or tensor.data_type != onnx.TensorProto.INT4 or len(node.input) > 2:
        raise Broken(f"{node.name}: scales in blocks belong to an INT4 weight without zero point")
    scale, (rows, columns) = file.constant(node.input[1]), tensor.dims
    if scale.shape != (rows // attribute(node, "block_size", 0), columns) or attribute(node, "axis", 1) != 0:
        raise Broken(f"{node.name}: INT4 weight {[rows, columns]} with {scale.shape} scales")
    if scale.dtype != np.float32 or not np.isfinite(scale).all() or not (scale > 0).all():
        raise Broken(f"{node.name}: its scale must be float32, finite and > 0")


def _check_channels(file: OnnxFile, node: onnx.NodeProto) -> None:
    codes, scale = file.constants[node.input[0]], file.constant(node.input[1])
    axis = attribute(node, "axis", 1)
    if codes.dtype != np.int8 or not axis < codes.ndim or scale.shape != (codes.shape[axis],):
        raise Broken(f"{node.name}: {codes.dtype} weight {codes.shape} with {scale.shape} scales on axis {axis}")


def _check_pair(file: OnnxFile, node: onnx.NodeProto) -> None:
    """A DequantizeLinear of an activation undoes a QuantizeLinear with the same scale."""
    quantize = file.producers.get(node.input[0])
    if quantize is None or quantize.op_type != "QuantizeLinear":
        raise Broken(f"{node.name}: no QuantizeLinear before it")
    if not same_values(file.constant(quantize.input[1]), file.constant(node.input[1])):
        raise Broken(f"{node.name}: its scale differs from that of the QuantizeLinear before it")
