"""What an engine really runs: the engine inspector's JSON of TensorRT 10 and 11, layer by layer.

A sparse kernel is proved by the name of the chosen tactic alone: `HasSparseWeights` says that a layer may take one, and
is also set on layers that run dense.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from act.errors import InputError

_ONNX = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_INT8 = re.compile(r"int8|i8i8|s8s8|_i8_|imma", re.IGNORECASE)
_NO_KERNEL = ("NoOp", "Constant", "Shape", "Reformat", "Reshape")


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine. `nodes`: the ONNX nodes it was made of. `sparse`: whether a sparse tactic was chosen,
    None where the engine does not name its tactic. `milliseconds` per run, None if not timed."""

    name: str
    kind: str
    nodes: tuple[str, ...]
    tactic: str
    eligible: bool
    int8: bool
    sparse: bool | None
    milliseconds: float | None = None


def parse_layers(
    text: str, sparse_nodes: Iterable[str] = (), times: Mapping[str, float] | None = None
) -> list[EngineLayer]:
    """Layers of the inspector's JSON `text`.

    `sparse_nodes`: names of the ONNX nodes with 2:4 weights, which make a layer eligible as `HasSparseWeights` does.
    `times`: milliseconds by layer name. InputError if the text is not such JSON, or the engine was built without
    detailed profiling.
    """
    try:
        items: list[Any] = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"engine inspector: not its JSON with a list `Layers`: {error}") from error
    if any(not isinstance(item, dict) for item in items):
        raise InputError(
            "engine inspector: gives the names of the layers only; build with detailed profiling (ProfilingVerbosity."
            "DETAILED, trtexec --profilingVerbosity=detailed)"
        )
    claimed = frozenset(sparse_nodes)
    return [_layer(item, claimed, times or {}) for item in items]


def _layer(item: Mapping[str, Any], claimed: frozenset[str], times: Mapping[str, float]) -> EngineLayer:
    name, kind, tactic = (str(item.get(key) or "") for key in ("Name", "LayerType", "TacticName"))
    nodes = tuple(_ONNX.findall(str(item.get("Metadata") or "")))
    kernel = kind not in _NO_KERNEL
    flagged = str(item.get("HasSparseWeights", 0)).lower() in ("1", "true")
    inputs = [_datatype(tensor) for tensor in item.get("Inputs", []) if isinstance(tensor, dict)]
    known = bool(tactic) and kind.lower() not in ("myelin", "foreignnode", "{foreignnode}")
    sparse = "sparse" in tactic.lower() if known or "sparse" in tactic.lower() else None
    return EngineLayer(
        name=name,
        kind=kind,
        nodes=nodes,
        tactic=tactic,
        eligible=kernel and (flagged or bool(claimed & set(nodes))),
        int8=kernel and (any("int8" in text.lower() for text in inputs) or bool(_INT8.search(tactic))),
        sparse=sparse if kernel else False,
        milliseconds=times.get(name),
    )


def _datatype(tensor: Mapping[str, Any]) -> str:
    """`Format/Datatype` of TensorRT 10, `DataType` of 11."""
    return str(tensor.get("DataType") or tensor.get("Datatype") or tensor.get("Format/Datatype") or "")


def io_tensors(text: str) -> list[str]:
    """Names of the engine's inputs and outputs: `Bindings` of TensorRT 10, `I/O Tensors` of 11."""
    found = json.loads(text)
    listed = found.get("I/O Tensors", found.get("Bindings", []))
    return [str(item["Name"] if isinstance(item, dict) else item) for item in listed]


def summary(layers: Iterable[EngineLayer]) -> dict[str, int]:
    """Counts for the report; `unknown` are eligible layers whose tactic the engine does not name."""
    found = list(layers)
    eligible = [layer for layer in found if layer.eligible]
    return {
        "layers": len(found),
        "int8": sum(layer.int8 for layer in found),
        "eligible": len(eligible),
        "sparse": sum(layer.sparse is True for layer in eligible),
        "dense": sum(layer.sparse is False for layer in eligible),
        "unknown": sum(layer.sparse is None for layer in eligible),
    }
