"""Export of a compressed model to ONNX with Q/DQ (`torch.onnx`, dynamo exporter)."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from act import __version__
from act.errors import ExportError, InputError
from act.export.attention import attention_translations
from act.export.forms import to_export_forms
from act.export.graph import INT4, finish_graph
from act.export.traces import traces_forgotten
from act.models import logits
from act.run.atomic import replacing

MIN_OPSET, MAX_OPSET = 19, 23
INT4_OPSET = 21
INPUT, OUTPUT, BATCH = "images", "logits", "batch"
_PREFIX = "model."  # of the wrapper below


class _Logits(nn.Module):
    """The model with its output reduced to class logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return logits(self.model(images))


def export_onnx(
    model: nn.Module,
    path: str | Path,
    input_size: tuple[int, int, int],
    opset: int = 20,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `model` to the ONNX file `path`.

    Input `images` [batch, *input_size] and output `logits` [batch, classes] in float32, batch dynamic. The weight of
    a quantised layer is an int8 constant with DequantizeLinear, its input passes QuantizeLinear and
    DequantizeLinear; all zero points are 0 and all scales are the module's own. Weights with groups are packed INT4,
    which needs opset 21 whatever `opset` says. `metadata` becomes the file's metadata_props. `model` itself is not
    changed. InputError for an opset out of range, ExportError when the model's forward cannot be traced.
    """
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise InputError(f"export.opset: {opset}; allowed: {MIN_OPSET} to {MAX_OPSET}")
    copied = copy.deepcopy(model).to(device="cpu", dtype=torch.float32).eval().requires_grad_(False)
    forms = to_export_forms(copied)
    if any(name.endswith(INT4) for name in forms.buffers):
        opset = max(opset, INT4_OPSET)
    # Two images: a batch of one would be traced as a constant.
    example = torch.zeros(2, *input_size)
    with traces_forgotten(), _quiet(), torch.no_grad():
        try:
            program = torch.export.export(
                _Logits(copied), (example,), dynamic_shapes=({0: torch.export.Dim(BATCH)},), strict=False
            )
            onnx_program = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
                custom_translation_table=attention_translations(program),
                verbose=False,
            )
            assert onnx_program is not None
            proto: onnx.ModelProto = onnx_program.model_proto
        except (ExportError, InputError):
            raise
        except Exception as error:  # tracing fails in as many ways as there are models
            raise ExportError(f"the model cannot be traced to ONNX: {_reason(error)}") from error
    uncalled = [name for name in forms.layers if name not in forms.calls]
    if uncalled:
        raise ExportError(
            f"{', '.join(uncalled)}: compressed, but the model's forward does not call it (it may use the weight "
            "directly), so masks and quantisers would do nothing; leave it out of the compression (skip)"
        )
    finish_graph(proto, _PREFIX, forms.buffers, BATCH)
    for key, value in {"producer": f"vitcompress {__version__}", **(metadata or {})}.items():
        proto.metadata_props.add(key=key, value=value)
    with replacing(path) as temporary:
        onnx.save_model(proto, str(temporary))


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause, where the exporters put what really went wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines: list[str] = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's own chatter; what matters is checked on the written file."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    levels: list[tuple[Any, int]] = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    try:
        for logger, _ in levels:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
