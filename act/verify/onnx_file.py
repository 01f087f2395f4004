"""An ONNX file as the checks see it: constants by name, producers and consumers."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from act.backends.onnx_guard import read_onnx
from act.errors import InputError
from act.export.graph import ALIASES
from act.export.onnx_graph import Array, to_array

_LARGEST_SIDE = 4096  # pixels; a damaged shape must not make the checks allocate without bound


class OnnxFile:
    """The model in the file `path`. InputError if it is missing, cannot be parsed, is empty or keeps data in other
    files."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.model = read_onnx(path)  # a file from a stranger must not make us read others
        self.graph = self.model.graph
        if not (self.graph.node and self.graph.input and self.graph.output):
            raise InputError(f"{path}: not a readable ONNX file: it has no graph with an input and an output")

    @property
    def metadata(self) -> dict[str, str]:
        """What the file says of itself."""
        return {prop.key: prop.value for prop in self.model.metadata_props}

    @cached_property
    def constants(self) -> dict[str, Array]:
        """Initialisers by name; INT4 as int8."""
        return {tensor.name: to_array(tensor) for tensor in self.graph.initializer}

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        """The node that makes each value."""
        return {output: node for node in self.graph.node for output in node.output}

    @cached_property
    def consumers(self) -> dict[str, list[onnx.NodeProto]]:
        """The nodes that read each value."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in set(node.input):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def _aliases(self) -> dict[str, str]:
        aliases = json.loads(self.metadata.get(ALIASES, "{}"))
        return aliases if isinstance(aliases, dict) else {}

    def stored_name(self, name: str) -> str | None:
        """The initialiser that holds `name`: itself, the equal one it was merged into, or None."""
        found = name if name in self.constants else self._aliases.get(name)
        return found if found in self.constants else None

    def constant(self, name: str) -> Array:
        """The value of `name`; InputError if the file lacks it."""
        stored = self.stored_name(name)
        if stored is None:
            raise InputError(f"{self.path}: {name}: missing")
        return self.constants[stored]

    def input_size(self) -> tuple[int, int, int]:
        """[channels, height, width] of the first input."""
        dims = [dim.dim_value for dim in self.graph.input[0].type.tensor_type.shape.dim]
        if len(dims) != 4 or not all(0 < size <= _LARGEST_SIDE for size in dims[1:]):
            raise InputError(f"{self.path}: its input has the shape {dims}; expected [batch, channels, height, width]")
        return dims[1], dims[2], dims[3]


def without_activation_rounding(file: OnnxFile) -> onnx.ModelProto:
    """A copy of the model in which activations are not quantised; integer weights stay.

    Rounding of activations magnifies tiny differences between runtimes. The same graph without it can be compared
    with the torch model to float precision.
    """
    model = onnx.ModelProto()
    model.CopyFrom(file.model)
    renames: dict[str, str] = {}
    removed: set[str] = set()  # outputs of removed nodes
    for node in model.graph.node:
        quantize = file.producers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        source = quantize.input[0]
        clip = file.producers.get(source)
        if clip is not None and clip.op_type == "Clip" and file.consumers[source] == [quantize]:
            # The narrower range of fewer than 8 bits belongs to the quantiser.
            removed.add(source)
            source = clip.input[0]
        renames[node.output[0]] = source
        removed |= {node.output[0], quantize.output[0]}
    kept = [node for node in model.graph.node if node.output[0] not in removed]
    for node in kept:
        for index, name in enumerate(node.input):
            while name in renames:
                name = renames[name]
            node.input[index] = name
    graph = onnx.GraphProto()
    graph.node.extend(kept)
    del model.graph.node[:]
    model.graph.node.extend(graph.node)
    return model


def same_values(a: Array, b: Array) -> bool:
    """Whether both arrays have one type and shape and the same values; 0 and -0 count as one."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(a, b))
