"""OpenVINO's IR from the main file, in the form that its CPU kernels run fastest.

Rewrites before the conversion; weights and codes stay the same. A joint projection becomes three, since
OpenVINO fuses an attention with its transposes where query, key and value come from products of their own. Q/DQ pairs
move before the transposes, where the product before them writes the codes. The zero points of weights, all of them 0,
are left out: the converter keeps one that two layers share as a subtraction, and multiplies those layers in floating
point. Zero tokens are appended where that was measured to be faster (act/export/padding.py).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx

from act.backends.onnx_guard import read_onnx
from act.errors import ExportError
from act.export.onnx_graph import Graph
from act.export.padding import pad_tokens, padding_obstacle
from act.export.placement import bypass_attentions
from act.export.projections import hoist_pairs, split_projections
from act.export.tokens import keep_read_tokens
from act.run.atomic import PARTIAL, move

# Where the file says how its attention products run, and whether tokens may have been appended.
ATTENTION, PADDED = ["vitcompress", "attention"], ["vitcompress", "pad_tokens"]


def to_openvino_form(model: onnx.ModelProto, attention: str = "int8", padded: bool = False) -> dict[str, int]:
    """Rewrite `model` in place; what was done how often.

    `attention` float leaves out its products' quantisers. `padded` appends zero tokens where they can be.
    """
    if attention == "float":
        bypass_attentions(model)
    made = {
        "split projections": split_projections(model),
        "pairs before transposes": hoist_pairs(model),
        "zero tokens appended": pad_tokens(model) if padded else 0,
        "products on read tokens only": len(keep_read_tokens(model)),
    }
    _drop_zero_points(model)
    return made


def not_padded(main: Path) -> str | None:
    """Why no tokens can be appended in the form of the main ONNX file; None if they can."""
    model = read_onnx(main)
    split_projections(model)
    hoist_pairs(model)
    return padding_obstacle(model)


def export_openvino(main: Path, target: Path, attention: str = "int8", padded: bool = False) -> dict[str, int]:
    """Write `target` (.xml) and its .bin from the main ONNX file; what was rewritten. ExportError if it cannot be."""
    import openvino

    made, converted = convert(main, attention, padded)
    converted.set_rt_info(attention, ATTENTION)
    converted.set_rt_info(str(padded).lower(), PADDED)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=target.parent) as folder:
        written = Path(folder) / target.name
        openvino.save_model(converted, str(written), compress_to_fp16=False)
        move(written.with_suffix(".bin"), target.with_suffix(".bin"))
        move(written, target)
    return made


def convert(main: Path, attention: str, padded: bool) -> tuple[dict[str, int], Any]:
    """What was rewritten in the main ONNX file, and the openvino.Model of the result."""
    import openvino

    model = read_onnx(main)
    made = to_openvino_form(model, attention, padded)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / main.name
        onnx.save_model(model, str(path))
        try:
            return made, openvino.convert_model(str(path))
        except RuntimeError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise ExportError(f"{main}: OpenVINO cannot convert it: {(lines or ['?'])[-1][:300]}") from error


def _drop_zero_points(model: onnx.ModelProto) -> None:
    graph = Graph(model)
    for node in model.graph.node:
        zero = graph.constant(node.input[2]) if node.op_type == "DequantizeLinear" and len(node.input) > 2 else None
        if zero is not None and not zero.any() and graph.constant(node.input[0]) is not None:
            del node.input[2]
