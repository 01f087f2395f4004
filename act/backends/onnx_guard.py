"""ONNX files from strangers: read without following what they point at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import onnx

from act.errors import InputError

MAX_BYTES = 2**31  # what one protobuf message can hold
_REPEATED = type(onnx.GraphProto().node)


def read_onnx(path: str | Path) -> onnx.ModelProto:
    """The model in a file, without data that lie in other files.

    Raises:
        InputError: missing, too large, not an ONNX file, or with data in other files.
    """
    model = _parse(Path(path))
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise InputError(f"{path}: {tensor.name}: its data lies in another file; it must be in the ONNX file")
    return model


def check_external_data(path: str | Path) -> None:
    """InputError unless all data of an ONNX file lie in plain files of its own folder, before a runtime opens them."""
    file = Path(path)
    for tensor in _tensors(_parse(file)):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        pure = PurePosixPath(location)
        target = file.parent / location
        inside = location and not pure.is_absolute() and ".." not in pure.parts and "\\" not in location
        if not inside or target.resolve() != file.parent.resolve() / pure or not target.is_file():
            where = f"{path}: {tensor.name[:100]}: its data lies in {location[:200]!r}"
            raise InputError(f"{where}; allowed: a plain file beside the ONNX file")


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise InputError(f"{path}: no such file; name an ONNX file, or a folder that holds one")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: larger than 2 GiB, which no ONNX file can be")
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf and onnx raise many types; the file is the problem
        raise InputError(f"{path}: not a readable ONNX file: {error}") from error


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor of a protobuf message, whatever it lies in: graphs, subgraphs, functions, attributes."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for item in value if isinstance(value, _REPEATED) else [value]:
            if isinstance(item, onnx.TensorProto):
                yield item
            else:
                yield from _tensors(item)
