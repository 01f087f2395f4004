"""What is done to the exporter's graph before it is written: names, one Q/DQ pair per reader, metadata.

Afterwards each initialiser and node is called after the layer it comes from, so that a census, a profile or
`verify` can speak of layers, and the file holds no source paths of the machine that wrote it.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper
from torch import Tensor

from act.errors import ExportError
from act.export.patterns import drop_dead

ALIASES = "vitcompress.aliases"  # metadata key: JSON of initialisers that were merged into an equal one
INT4 = ".weight_int4"
_SCOPES = "pkg.torch.onnx.name_scopes"
_NON_NEGATIVE = frozenset({"Softmax", "Relu", "Sigmoid", "HardSigmoid", "Abs"})


def finish_graph(model: onnx.ModelProto, prefix: str, buffers: Mapping[str, Tensor], batch: str) -> None:
    """Tidy `model` in place.

    `prefix` is what the exporting wrapper put before every name, `batch` becomes the name of the batch dimension.
    `buffers` are those of the export forms by name, each of which must be in the graph: ExportError for one that the
    exporter lost.
    """
    graph = model.graph
    _rename_values(graph, {name: name.removeprefix(prefix) for name in _initializer_names(graph)})
    _name_nodes(graph, prefix)
    _name_batch(graph, batch)
    _drop_needless_clips(graph)
    _share_zero_points(graph)
    _separate_pairs(graph)
    drop_dead(graph)
    aliases = _find_aliases(graph, buffers)
    _pack_int4(graph)
    _clear_metadata(model)
    if aliases:
        model.metadata_props.add(key=ALIASES, value=json.dumps(aliases, sort_keys=True))


def _initializer_names(graph: onnx.GraphProto) -> list[str]:
    return [tensor.name for tensor in graph.initializer]


def _rename_values(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename values throughout the graph; graph inputs and outputs keep their names."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def _name_nodes(graph: onnx.GraphProto, prefix: str) -> None:
    """Call each node `<module path>/<operator>`, numbered where a module has several of one kind."""
    seen: Counter[str] = Counter()
    for node in graph.node:
        props = {prop.key: prop.value for prop in node.metadata_props}
        try:
            scopes = ast.literal_eval(props.get(_SCOPES, "[]"))
        except (ValueError, SyntaxError):
            scopes = []
        # The last scope is the traced call itself, the one before it the innermost module.
        path = scopes[-2] if len(scopes) > 1 else ""
        path = "" if path + "." == prefix or path.startswith("_empty_nn_module_stack") else path.removeprefix(prefix)
        name = f"{path}/{node.op_type}" if path else node.op_type
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


def _name_batch(graph: onnx.GraphProto, batch: str) -> None:
    """Rename the symbol of the batch dimension, also inside products such as `4*s0` (windows)."""
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    pattern = re.compile(rf"\b{re.escape(symbol)}\b")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = pattern.sub(batch, dim.dim_param)


def _drop_needless_clips(graph: onnx.GraphProto) -> None:
    """Remove a Clip at 0 from below (a non-negative quantiser's) where the operator before it cannot go below."""
    producers = {output: node for node in graph.node for output in node.output}
    values = {tensor.name: tensor for tensor in graph.initializer}
    renames = {}
    for node in list(graph.node):
        if node.op_type != "Clip" or len([name for name in node.input if name]) != 2 or not node.input[1]:
            continue
        low, source = values.get(node.input[1]), producers.get(node.input[0])
        at_zero = low is not None and float(numpy_helper.to_array(low)) == 0.0
        if at_zero and source is not None and source.op_type in _NON_NEGATIVE:
            renames[node.output[0]] = node.input[0]
            graph.node.remove(node)
    _rename_values(graph, renames)


def _share_zero_points(graph: onnx.GraphProto) -> None:
    """Use one zero-point initialiser per type and shape, under a name that belongs to no layer."""
    values = {tensor.name: tensor for tensor in graph.initializer}
    renames, shared = {}, {}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
            continue
        tensor = values[node.input[2]]
        zeros = numpy_helper.to_array(tensor)
        kind = "zero_point" if zeros.dtype == np.int8 else f"zero_point_{zeros.dtype}"
        name = "_".join([kind, *map(str, tensor.dims)])
        if name not in shared:
            shared[name] = numpy_helper.from_array(np.zeros_like(zeros), name)
        renames[tensor.name] = name
    _rename_inputs_of_pairs(graph, renames)
    graph.initializer.extend(shared.values())


def _rename_inputs_of_pairs(graph: onnx.GraphProto, renames: Mapping[str, str]) -> None:
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
            node.input[2] = renames.get(node.input[2], node.input[2])


def _separate_pairs(graph: onnx.GraphProto) -> None:
    """Give each reader of a quantised activation a Q/DQ pair of its own.

    The exporter merges pairs that agree (q, k and v of one input). ONNX Runtime moves activations from int8 to
    uint8 to reach its fast kernels, and does so only for a QuantizeLinear with one reader: products behind a shared
    pair would run in floating point. The copies differ in `axis`, which means nothing with a single scale but keeps
    ONNX Runtime from merging them again.
    """
    producers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    readers: Counter[str] = Counter()  # of each quantised tensor so far
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            dequantize = producers.get(name)
            if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.input[0] in constants:
                continue
            quantize = producers[dequantize.input[0]]
            copies = readers[quantize.output[0]]
            readers[quantize.output[0]] += 1
            if copies:
                pair = [_copy(item, copies) for item in (quantize, dequantize)]
                pair[1].input[0], node.input[index] = pair[0].output[0], pair[1].output[0]
                nodes += pair
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(nodes)


def _copy(node: onnx.NodeProto, number: int) -> onnx.NodeProto:
    copied = onnx.NodeProto.FromString(node.SerializeToString())
    copied.name, copied.output[0] = f"{node.name}.{number + 1}", f"{node.output[0]}.copy{number + 1}"
    del copied.attribute[:]
    # An axis that any activation has; more readers than that may be merged, which costs speed only.
    copied.attribute.append(onnx.helper.make_attribute("axis", min(number, 2)))
    return copied


def _pack_int4(graph: onnx.GraphProto) -> None:
    """Store the codes of weights with groups as INT4, two in a byte; the exporter has no such type."""
    for tensor in graph.initializer:
        if tensor.name.endswith(INT4):
            codes = numpy_helper.to_array(tensor).reshape(-1) & 0xF
            even = np.append(codes, 0) if codes.size % 2 else codes
            packed = (even[0::2] | (even[1::2] << 4)).astype(np.uint8).tobytes()
            tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, onnx.TensorProto.INT4, tensor.dims, packed, raw=True))


def _find_aliases(graph: onnx.GraphProto, buffers: Mapping[str, Tensor]) -> dict[str, str]:
    """For each buffer missing under its own name, the equal initialiser that the exporter merged it into."""
    present = {tensor.name: tensor for tensor in graph.initializer}
    aliases = {}
    for name, buffer in buffers.items():
        if name in present:
            continue
        array = buffer.numpy()
        equal: Callable[[onnx.TensorProto], bool] = lambda tensor, array=array: (  # type: ignore[misc]  # noqa: E731
            tuple(tensor.dims) == array.shape and numpy_helper.to_array(tensor).tobytes() == array.tobytes()
        )
        found = next((tensor.name for tensor in graph.initializer if equal(tensor)), None)
        if found is None:
            raise ExportError(f"{name}: lost by the exporter; the traced graph does not depend on it")
        aliases[name] = found
    return aliases


def _clear_metadata(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes: stack traces with absolute paths, about a sixth of a small int8 file."""
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
