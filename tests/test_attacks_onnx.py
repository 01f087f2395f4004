"""What a stranger may send as an ONNX file that tries to do more than be data. Each test is one attack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bad_input_support import one_line
from onnx import TensorProto, helper

from act.backends.onnx_guard import check_external_data, read_onnx
from act.backends.onnxruntime import open_session
from act.errors import InputError


def external(path: Path, location: str, where: str = "initializer") -> Path:
    """x + w with the four floats of w in another file."""
    tensor = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": "16"}.items():
        tensor.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(name, 1, [4]) for name in "xy")
    add = helper.make_node("Add", ["x", "w"], ["y"])
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    if where == "initializer":
        model = helper.make_model(helper.make_graph([add], "g", [x], [y], [tensor]), opset_imports=opsets[:1])
    elif where == "constant":
        model = helper.make_model(helper.make_graph([constant, add], "g", [x], [y]), opset_imports=opsets[:1])
    else:
        function = helper.make_function("own", "F", ["x"], ["y"], [constant, add], opsets[:1])
        call = helper.make_node("F", ["x"], ["y"], domain="own")
        graph = helper.make_graph([call], "g", [x], [y])
        model = helper.make_model(graph, opset_imports=opsets, functions=[function])
    model.ir_version = 10
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("where", ["initializer", "constant", "function"])
@pytest.mark.parametrize("location", ["../secret.bin", "SECRET", "link.bin", "sub/../../secret.bin", "", "none.bin"])
def test_onnx_data_outside_the_folder(
    where: str, location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "onnx"
    (folder / "sub").mkdir(parents=True)
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (folder / "link.bin").symlink_to(secret)
    path = external(folder / "m.onnx", location.replace("SECRET", str(secret)), where)
    for opened in (check_external_data, open_session):
        with pytest.raises(InputError, match="its data lies in"):
            opened(path)
    with pytest.raises(InputError, match="its data lies in another file"):
        read_onnx(path)
    assert "its data lies in" in one_line(capsys, "bench", str(path))
    assert "its data lies in" in one_line(capsys, "eval", str(path), "--recipe", "quickstart")


def test_onnx_data_beside_the_file_may_be_benchmarked(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    path = external(tmp_path / "m.onnx", "w.bin")
    result = open_session(path).run(None, {"x": np.zeros(4, np.float32)})[0]
    assert result.tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match="its data lies in another file"):
        read_onnx(path)


def test_onnx_file_that_is_too_large(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.truncate(2**31 + 1)  # sparse: takes no space
    assert "larger than 2 GiB" in one_line(capsys, "bench", str(path))


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def test_onnx_graph_nested_without_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = b""
    for _ in range(5_000):
        for field in (6, 5, 1):  # graph of an attribute of a node of a graph
            content = bytes([field << 3 | 2]) + varint(len(content)) + content
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes([7 << 3 | 2]) + varint(len(content)) + content)
    assert str(path) in one_line(capsys, "bench", str(path))
