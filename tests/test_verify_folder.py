"""`verify_folder` accepts an honest artifact and names what is wrong with any other; it never crashes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_support import (
    VIT,
    base_model,
    calibrate,
    images,
    quantize_edit,
    standard_artifact,
    write_artifact,
)
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from act.edits import apply_edits
from act.errors import InputError
from act.run.atomic import sha256_file
from act.verify.folder import verify_folder, write_manifest

LAYER = "blocks.1.mlp.fc1"


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    shutil.copytree(standard_artifact()[0], tmp_path / "artifact")
    return tmp_path / "artifact"


def broken(folder: Path) -> dict[str, str]:
    return {item.name: item.detail for item in verify_folder(folder) if not item.holds}


def edit_onnx(folder: Path, change: Callable[[onnx.GraphProto], None]) -> None:
    model = onnx.load(folder / "model.onnx")
    change(model.graph)
    onnx.save_model(model, folder / "model.onnx")


def edit_constant(folder: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    def replace(graph: onnx.GraphProto) -> None:
        tensor = next(t for t in graph.initializer if t.name == name)
        value = numpy_helper.to_array(tensor).copy()
        change(value)
        tensor.CopyFrom(numpy_helper.from_array(value, name))

    edit_onnx(folder, replace)


def edit_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], None]) -> None:
    tensors = {key: value.clone() for key, value in load_file(folder / "model.safetensors").items()}
    change(tensors[name])
    save_file(tensors, folder / "model.safetensors")


def edit_arch(folder: Path, change: Callable[[dict], None]) -> None:
    arch = json.loads((folder / "arch.json").read_text())
    change(arch)
    (folder / "arch.json").write_text(json.dumps(arch))


def flip_first_nonzero(codes: np.ndarray) -> None:
    flat = codes.reshape(-1)
    flat[np.flatnonzero(flat)[0]] *= -1


def test_honest_artifact_holds_and_says_what_was_checked(artifact: Path) -> None:
    found = verify_folder(artifact)
    assert all(item.holds for item in found), [item for item in found if not item.holds]
    details = {item.name: item.detail for item in found}
    assert details["weights"].startswith("10 integer weights")
    assert details["N:M sparsity"] == "8 layers"
    assert details["quantised inputs"] == "10 products"
    assert [item.name for item in verify_folder(artifact.parent)] == [item.name for item in found]


@pytest.mark.parametrize("resealed", [False, True])
def test_single_flipped_weight_in_the_onnx_file(artifact: Path, resealed: bool) -> None:
    edit_constant(artifact, f"{LAYER}.weight_int8", flip_first_nonzero)
    if resealed:
        write_manifest(artifact)
    found = broken(artifact)
    assert f"{LAYER}: 1 weights differ" in found["weights"]
    assert ("checksums" in found) is not resealed


def test_single_flipped_weight_in_safetensors(artifact: Path) -> None:
    def flip(weight: torch.Tensor) -> None:
        index = weight.abs().argmax()
        weight.view(-1)[index] *= -1

    edit_tensor(artifact, f"{LAYER}.weight", flip)
    write_manifest(artifact)
    assert f"{LAYER}: 1 weights differ" in broken(artifact)["weights"]


def test_single_flipped_bias(artifact: Path) -> None:
    edit_constant(artifact, f"{LAYER}.bias", flip_first_nonzero)
    write_manifest(artifact)
    assert broken(artifact)["constants and scales"].startswith(f"{LAYER}.bias:")


@pytest.mark.parametrize("value", [True, False])
def test_flipped_mask(artifact: Path, value: bool) -> None:
    def flip(mask: torch.Tensor) -> None:
        position = (mask != value).nonzero()[0]
        mask[tuple(position)] = value

    edit_tensor(artifact, f"{LAYER}.weight_mask", flip)
    write_manifest(artifact)
    found = broken(artifact)
    if value:
        assert found["N:M sparsity"] == f"{LAYER}: 1 groups of its mask break 2:4 along K"
    else:
        assert f"{LAYER}: 1 weights differ" in found["weights"]


def test_third_weight_in_a_group_on_both_sides(artifact: Path) -> None:
    """Consistently changed files: only the pattern itself is left to catch it."""
    scale = load_file(artifact / "model.safetensors")[f"{LAYER}.weight_quantizer.scale"]

    def fill(weight: torch.Tensor) -> None:
        weight[0, :4] = 3 * scale[0]

    edit_tensor(artifact, f"{LAYER}.weight", fill)
    edit_tensor(artifact, f"{LAYER}.weight_mask", lambda mask: mask[0, :4].fill_(True))

    def fill_codes(codes: np.ndarray) -> None:
        codes[:4, 0] = 3

    edit_constant(artifact, f"{LAYER}.weight_int8", fill_codes)
    write_manifest(artifact)
    found = broken(artifact)
    assert list(found) == ["N:M sparsity"] and found["N:M sparsity"].startswith(f"{LAYER}: 1 groups")


@pytest.mark.parametrize("kind", ["input_quantizer", "weight_quantizer"])
def test_changed_scale(artifact: Path, kind: str) -> None:
    def nudge(scale: np.ndarray) -> None:
        scale.reshape(-1)[0] = np.nextafter(scale.reshape(-1)[0], np.float32(1))

    edit_constant(artifact, f"{LAYER}.{kind}.scale", nudge)
    write_manifest(artifact)
    found = broken(artifact)
    assert "constants and scales" in found and f"{LAYER}.{kind}.scale" in found["constants and scales"]
    assert ("quantised inputs" in found) is (kind == "input_quantizer")


def test_scale_of_one_half_of_a_pair(artifact: Path) -> None:
    def rewire(graph: onnx.GraphProto) -> None:
        node = next(n for n in graph.node if n.name == f"{LAYER}.input_quantizer/DequantizeLinear")
        node.input[1] = "head.input_quantizer.scale"

    edit_onnx(artifact, rewire)
    write_manifest(artifact)
    assert "its scale differs" in broken(artifact)["symmetric Q/DQ"]


def test_input_that_bypasses_its_quantiser(artifact: Path) -> None:
    def rewire(graph: onnx.GraphProto) -> None:
        quantize = next(n for n in graph.node if n.name == f"{LAYER}.input_quantizer/QuantizeLinear")
        product = next(n for n in graph.node if n.name == f"{LAYER}/MatMul")
        product.input[0] = quantize.input[0]

    edit_onnx(artifact, rewire)
    write_manifest(artifact)
    assert "none (float)" in broken(artifact)["quantised inputs"]


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_impossible_scale(artifact: Path, scale: float) -> None:
    edit_constant(artifact, "head.input_quantizer.scale", lambda value: value.fill(scale))
    assert "finite and > 0" in broken(artifact)["symmetric Q/DQ"]


def test_zero_point(artifact: Path) -> None:
    edit_constant(artifact, "zero_point", lambda value: value.fill(1))
    assert "zero point" in broken(artifact)["symmetric Q/DQ"]


def test_rewired_graph_with_all_constants_in_place(artifact: Path) -> None:
    def rewire(graph: onnx.GraphProto) -> None:
        node = next(n for n in graph.node if n.op_type == "Gelu")
        node.op_type = "Relu"
        del node.attribute[:]

    edit_onnx(artifact, rewire)
    write_manifest(artifact)
    assert list(broken(artifact)) == ["parity"]


def test_data_outside_the_file(artifact: Path) -> None:
    model = onnx.load(artifact / "model.onnx")
    onnx.save_model(model, artifact / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert "its data lies in another file" in broken(artifact)["standard ONNX"]


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "arch.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "garbage"])
def test_damaged_files_never_crash(artifact: Path, name: str, damage: str) -> None:
    path = artifact / name
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "garbage":
        path.write_bytes(b"\xff\x00 not a file of this kind" * 9)
    found = broken(artifact)
    assert "checksums" in found and all(found.values())
    if name != "manifest.json":
        assert len(found) > 1


@pytest.mark.parametrize("listed", ["../outside.txt", "/etc/hostname", "a\\b"])
def test_manifest_may_not_lead_out_of_the_folder(artifact: Path, listed: str) -> None:
    (artifact.parent / "outside.txt").write_text("x")
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["files"][listed] = {"sha256": sha256_file(artifact.parent / "outside.txt"), "bytes": 1}
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    assert broken(artifact)["checksums"] == f"{listed}: leads out of the folder"


def test_file_that_the_manifest_does_not_list(artifact: Path) -> None:
    (artifact / "extra.bin").write_bytes(b"x")
    assert broken(artifact)["checksums"] == "extra.bin: not in manifest.json"


def test_arch_that_forgets_a_layer(artifact: Path) -> None:
    edit_arch(artifact, lambda arch: arch["edits"][0]["layers"].remove(LAYER))
    assert f"{LAYER}.weight_mask" in broken(artifact)["weights"]
    edit_arch(artifact, lambda arch: arch["edits"][0].update(layers=5))
    assert "cannot be checked" in broken(artifact)["N:M sparsity"]


def test_bias_of_a_shifted_input_is_checked_too(tmp_path: Path) -> None:
    edits = [quantize_edit(["head"]), {"op": "shift_input", "layers": ["head"]}]
    model = base_model(**VIT)
    apply_edits(model, edits)
    model.get_submodule("head").input_shift.fill_(0.3)  # type: ignore[operator,union-attr]
    calibrate(model, images(4))
    write_artifact(tmp_path, model, edits)
    assert not broken(tmp_path)
    edit_constant(tmp_path, "head.bias", flip_first_nonzero)
    write_manifest(tmp_path)
    assert broken(tmp_path)["weights"].startswith("head: its bias")


def test_module_without_a_timm_name_needs_the_module_for_parity(artifact: Path) -> None:
    edit_arch(artifact, lambda arch: arch.update(base=None))
    write_manifest(artifact)
    found = {item.name: item for item in verify_folder(artifact)}
    assert found["parity"].holds and found["parity"].detail.startswith("not checked")
    found = {item.name: item for item in verify_folder(artifact, base_model(**VIT))}
    assert found["parity"].holds and found["parity"].detail.startswith("relative difference")


def test_report_must_be_about_these_files(artifact: Path) -> None:
    onnx_file = artifact / "model.onnx"
    entry = {"path": "artifact/model.onnx", "bytes": onnx_file.stat().st_size, "sha256": sha256_file(onnx_file)}
    report = artifact.parent / "report.json"
    report.write_text(json.dumps({"artifacts": [entry]}))
    assert not broken(artifact.parent)
    report.write_text(json.dumps({"artifacts": [{**entry, "sha256": "0" * 64}]}))
    assert "not the file that the report measured" in broken(artifact.parent)["report"]
    report.write_text(json.dumps({"artifacts": [{**entry, "path": "../../etc/hostname"}]}))
    assert "not a file of this run" in broken(artifact.parent)["report"]


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        verify_folder(tmp_path / "none")
