"""The packed file: models come back from it, other exporters work from it, damage is one clear line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from export_support import (
    SIZE,
    VIT,
    base_model,
    images,
    linear_names,
    quantize_edit,
    standard_artifact,
    standard_edits,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from act.cli.main import main
from act.edits import apply_edits
from act.errors import InputError
from act.layers import compressed_layers
from act.rebuild import load_model_folder, load_packed_model, save_model, unique_tensors
from act.sparsity.masks import nm_mask
from act.storage.file import PACKED_FILE, digest, read_packed, write_packed
from act.storage.pack import pack_tensors
from act.storage.sizes import size_report
from act.verify.folder import verify_folder, write_manifest

METADATA = {"recipe": "tiny", "preprocess": json.dumps({"input_size": list(SIZE)})}
LAYER = "blocks.1.mlp.fc1"


def pack(folder: Path, model: nn.Module, edits: list[dict[str, Any]]) -> Path:
    tensors, shared = unique_tensors(model.state_dict())
    write_packed(pack_tensors(folder / PACKED_FILE, tensors, edits, shared, METADATA).file)
    return folder / PACKED_FILE


def only_packed(source: Path, target: Path) -> Path:
    target.mkdir()
    for name in ("arch.json", PACKED_FILE):
        shutil.copy(source / name, target / name)
    return target


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (name, one), (_, other) in zip(compressed_layers(a), compressed_layers(b), strict=True):
        assert torch.equal(one.effective_weight(), other.effective_weight()), name
        assert one.weight_mask is None or torch.equal(one.weight_mask, other.weight_mask), name
    with torch.no_grad():
        assert torch.equal(a(images()), b(images()))


def edits_of(bits: int, pattern: str | None, learn: str = "fixed", groups: int = 0) -> list[dict[str, Any]]:
    names = linear_names(base_model(**VIT))
    blocks = [name for name in names if name.startswith("blocks.")]
    more = {"weight_group_size": groups} if groups else {}
    mask = [{"op": "mask", "layers": blocks, "pattern": pattern}] if pattern else []
    inside = quantize_edit(blocks, bits, 8, learn=learn, **more)
    edge = quantize_edit([name for name in names if name not in blocks], bits, 0, learn=learn)
    return [*mask, {"op": "quantize", "layers": inside["layers"] | edge["layers"]}]


def built(edits: list[dict[str, Any]]) -> nn.Module:
    """The tiny ViT after `edits`, with masks by magnitude and a scale for each largest value."""
    model = apply_edits(base_model(**VIT), edits)
    patterns = {name: edit["pattern"] for edit in edits if edit["op"] == "mask" for name in edit["layers"]}
    for name, layer in compressed_layers(model):
        if layer.weight_mask is not None:
            n, m = map(int, patterns[name].split(":"))
            layer.weight_mask.copy_(nm_mask(layer.weight.abs(), n, m))
        if layer.weight_quantizer is not None:
            layer.weight_quantizer.set_range(layer.weight_quantizer.rows(layer.weight.detach()).abs().amax(-1))
        if layer.input_quantizer is not None:
            layer.input_quantizer.set_range(torch.tensor(3.0))
    return model


def saved(folder: Path, model: nn.Module, edits: list[dict[str, Any]]) -> Path:
    """`folder` with arch.json, model.safetensors and the packed file."""
    kwargs = {key: value for key, value in VIT.items() if key != "num_classes"}
    save_model(folder, model, {"name": "vit_tiny_patch16_224", "num_classes": 10, "kwargs": kwargs}, edits)
    pack(folder, model, edits)
    return folder


@pytest.mark.parametrize(
    ("bits", "pattern", "learn", "groups"),
    [
        (8, "2:4", "pact", 0),
        (4, "2:4", "lsq", 0),
        (4, "4:8", "fixed", 16),
        (3, "1:4", "fixed", 0),
        (5, None, "lsq", 24),
    ],
)
def test_rebuilt_with_the_same_effective_weights(
    tmp_path: Path, bits: int, pattern: str | None, learn: str, groups: int
) -> None:
    edits = edits_of(bits, pattern, learn, groups)
    model = built(edits)
    saved(tmp_path / "all", model, edits)
    rebuilt = load_model_folder(only_packed(tmp_path / "all", tmp_path / "packed"))
    assert not rebuilt.training
    assert_same(model, rebuilt)
    # What is not packed is the same tensor, and a rebuilt model packs to the same streams.
    before, after = model.state_dict(), rebuilt.state_dict()
    packed = read_packed(tmp_path / "all" / PACKED_FILE)
    assert all(torch.equal(before[name], after[name]) for name in packed.tensors if name in before)
    again = pack_tensors(tmp_path / "x", unique_tensors(after)[0], edits, {}, {}).file
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in packed.tensors.items())


def test_pairs_are_found_in_the_mask_and_floats_keep_their_bits(tmp_path: Path) -> None:
    edits = [{"op": "mask", "layers": [LAYER, "blocks.0.mlp.fc1"], "pattern": "4:8"}, quantize_edit([LAYER], 4)]
    model = built(edits)
    layer = model.get_submodule(LAYER)
    pairs = layer.weight.detach().abs().reshape(layer.weight.shape[0], -1, 2).sum(-1)
    layer.weight_mask.copy_(nm_mask(pairs, 2, 4).repeat_interleave(2, 1))
    packed = read_packed(saved(tmp_path / "all", model, edits) / PACKED_FILE)
    assert packed.layouts[LAYER].label() == "int4 4:8 pairs"
    assert packed.layouts["blocks.0.mlp.fc1"].label() == "float 4:8"
    assert_same(model, load_model_folder(only_packed(tmp_path / "all", tmp_path / "packed")))
    found = size_report(packed, (tmp_path / "all" / PACKED_FILE).stat().st_size)
    pair_bits, float_bits = Fraction(5, 2), Fraction(32 * 4 + 3 * 4, 8)
    assert found["sparse_weights_ratio"] == pytest.approx(float(2 * 32 / (pair_bits + float_bits)), abs=1e-4)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))  # type: ignore[no-any-return]


def test_a_weight_of_two_layers_is_left_with_its_reason(tmp_path: Path) -> None:
    model, edits = Tied(), [quantize_edit(["a"])]
    apply_edits(model, edits)
    save_model(tmp_path, model, None, edits)
    tensors, shared = unique_tensors(model.state_dict())
    packed = pack_tensors(tmp_path / PACKED_FILE, tensors, edits, shared, {})
    assert [(item.name, "another layer's" in item.reason) for item in packed.left] == [("a", True)]
    write_packed(packed.file)
    rebuilt = load_packed_model(read_packed(tmp_path / PACKED_FILE), Tied())
    assert all(torch.equal(value, rebuilt.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="pass that module"):
        load_packed_model(read_packed(tmp_path / PACKED_FILE))


def test_what_cannot_be_packed_is_left_or_refused(tmp_path: Path) -> None:
    edits = [{"op": "mask", "layers": ["a"], "pattern": "1:512"}, quantize_edit(["b"])]
    wide, mask, scale = torch.rand(2, 512), torch.zeros(2, 512, dtype=torch.bool), torch.ones(4)
    tensors = {"a.weight": wide, "a.weight_mask": mask, "b.weight": torch.rand(4, 4).half()}
    with pytest.raises(InputError, match=r"b\.weight_quantizer\.scale: not among the model's tensors"):
        pack_tensors(tmp_path, tensors, edits, {}, {})
    tensors["b.weight_quantizer.scale"] = scale
    packed = pack_tensors(tmp_path, tensors, edits, {}, {})
    assert packed.file.layouts == {} and packed.file.tensors == tensors
    assert [item.name for item in packed.left] == ["b", "a"]
    assert "float16" in packed.left[0].reason and "M <= 256" in packed.left[1].reason
    tensors |= {"a.weight": torch.rand(2, 512) + 0.1, "a.weight_mask": ~mask}
    with pytest.raises(InputError, match="a: cannot be stored as float 2:4 pairs: 256 groups keep more than 2 of 4"):
        pack_tensors(tmp_path, tensors, [{**edits[0], "pattern": "2:4"}], {}, {})


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sealed") / "artifact"
    shutil.copytree(standard_artifact()[0], folder)
    pack(folder, standard_artifact()[1], standard_edits())
    write_manifest(folder)
    return folder


@pytest.fixture
def copied(sealed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sealed, tmp_path / "artifact"))


def broken(folder: Path) -> dict[str, str]:
    return {item.name: item.detail for item in verify_folder(folder) if not item.holds}


def rewrite(folder: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], Any]) -> None:
    """Change tensors and layouts, and write them with a fitting sha256."""
    path = folder / PACKED_FILE
    with safe_open(path, "pt") as file:
        header = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = json.loads(header["weights"])
    change(tensors, weights)
    text = json.dumps(weights)
    save_file(tensors, path, metadata=header | {"weights": text, "sha256": digest(text, tensors)})


def test_verify_finds_any_flipped_bit(copied: Path) -> None:
    details = {item.name: item for item in verify_folder(copied)}
    assert details["packed file"].holds and details["packed file"].detail == "2 weights int8 dense, 8 weights int8 2:4"
    path = copied / PACKED_FILE
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)
    found = broken(copied)
    assert set(found) == {"checksums", "packed file"} and "sha256" in found["packed file"]
    write_manifest(copied)
    assert set(broken(copied)) == {"packed file"}


@pytest.mark.parametrize("part", ["values", "indices", "bias", "weight_quantizer.scale"])
def test_verify_finds_a_resealed_change(copied: Path, part: str) -> None:
    name = f"{LAYER}.weight.{part}" if part in ("values", "indices") else f"{LAYER}.{part}"

    def flip(tensors: dict[str, Tensor], weights: dict[str, Any]) -> None:
        content = tensors[name].view(torch.uint8)
        if part == "indices":  # to another rising pair of places, so that the file stays readable
            content[0] = (content[0] & 0xF0) | (1 | 2 << 2 if content[0] & 0xF != 1 | 2 << 2 else 0 | 3 << 2)
        else:
            content[0] ^= 1

    rewrite(copied, flip)
    write_manifest(copied)
    found = broken(copied)
    assert set(found) == {"packed file"}
    wanted = f"{LAYER}: " if part in ("values", "indices") else f"1 tensors are not those of model.safetensors: {name}"
    assert wanted in found["packed file"]


def test_other_files_are_made_from_a_packed_file_alone(
    sealed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = only_packed(sealed, tmp_path / "packed")
    assert main(["export", str(folder), "--to", "onnx", "--to", "tensorrt", "export.opset=21"]) == 0
    printed = capsys.readouterr().out
    assert "model.onnx" in printed and "model.tensorrt.onnx" in printed and "100.00 %" in printed
    made, first = onnx.load(folder / "model.onnx"), onnx.load(sealed / "model.onnx")
    assert made.opset_import[0].version == 21
    constants = {tensor.name: tensor for tensor in first.graph.initializer}
    assert all(tensor == constants[tensor.name] for tensor in made.graph.initializer)
    assert main(["export", str(folder), "--to", "packed"]) == 2
    assert main(["export", str(folder), "--to", "tflite"]) == 2
    assert main(["export", str(folder), "--to", "onnx", "seed=1"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "is what" in errors[0] and "tflite" in errors[1] and "seed=1" in errors[2]
    # The artifact of a run is exported to through its run.
    assert main(["export", str(sealed), "--to", "onnx"]) == 2
    assert "no finished run" in capsys.readouterr().err


HOSTILE: dict[str, tuple[Callable[[dict[str, Tensor], dict[str, Any]], Any], str]] = {
    "no indices": (lambda t, w: t.pop(f"{LAYER}.weight.indices"), "indices: missing, though"),
    "no scales": (lambda t, w: t.pop(f"{LAYER}.weight_quantizer.scale"), "scale: missing, though"),
    "short": (lambda t, w: t.update({f"{LAYER}.weight.values": torch.zeros(3, dtype=torch.uint8)}), r"is .* \[3\]; "),
    "float codes": (lambda t, w: t.update({f"{LAYER}.weight.values": torch.zeros(4608)}), "is torch.float32"),
    "huge": (lambda t, w: w[LAYER].update(shape=[2**40, 2**40]), r"int8 2:4 \[1099511627776, 1099511627776\] takes"),
    "other shape": (lambda t, w: w[LAYER].update(shape=[96, 96]), r"is .*; int8 2:4 \[96, 96\] takes .* \[96\]"),
    "turned": (lambda t, w: w["blocks.0.attn.proj"].update(shape=[24, 96]), "scale: is .* takes"),
    "strange layer": (lambda t, w: w.update(elsewhere=w[LAYER]), "elsewhere.weight.values: missing"),
    "twice": (lambda t, w: t.update({f"{LAYER}.weight": torch.zeros(1)}), "there twice"),
    "layout": (lambda t, w: w[LAYER].update(layout="quads"), f"weights: {LAYER}: layout 'quads'"),
    "no layer": (lambda t, w: w.update({LAYER: 3}), f"weights: {LAYER}: must be an object"),
    "extra": (lambda t, w: t.update(extra=torch.zeros(1)), "extra: the model has no such tensor"),
    "less": (lambda t, w: t.pop("cls_token"), "cls_token: missing"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_one_line(
    case: str, sealed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = HOSTILE[case]
    folder = only_packed(sealed, tmp_path / "packed")
    rewrite(folder, change)
    with pytest.raises(InputError, match=message) as caught:
        load_model_folder(folder)
    assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)
    assert main(["export", str(folder), "--to", "onnx"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert sorted(item.name for item in folder.iterdir()) == ["arch.json", PACKED_FILE]


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{", '{"a": NaN}', "[" * 50_000, '{"a": {"shape": [1' + "0" * 5000 + "]}}"]
)
def test_hostile_headers(text: str, sealed: Path, tmp_path: Path) -> None:
    path = tmp_path / PACKED_FILE
    header = {"format": "vitcompress.packed", "version": "1", "weights": text, "sha256": "0"}
    save_file({"a": torch.zeros(2)}, path, metadata=header)
    with pytest.raises(InputError, match=r"weights: |sha256") as caught:
        read_packed(path)
    assert "\n" not in str(caught.value)
    for change in ({"format": "pt"}, {"version": "2"}):
        save_file({"a": torch.zeros(2)}, path, metadata=header | change)
        with pytest.raises(InputError, match=r"this version reads vitcompress\.packed 1"):
            read_packed(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="format None"):
        read_packed(path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused(sealed: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray((sealed / PACKED_FILE).read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3, unique=True)):
            content[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / PACKED_FILE
    path.write_bytes(content)
    try:
        found = read_packed(path)
    except InputError as error:
        assert len(error.problems) == 1 and "\n" not in str(error)
    else:  # only what the file says of its run may differ
        before = read_packed(sealed / PACKED_FILE)
        assert found.layouts == before.layouts and list(found.tensors) == list(before.tensors)


def test_input_size_is_checked(sealed: Path) -> None:
    found = read_packed(sealed / PACKED_FILE)
    assert found.input_size() == SIZE
    for text in ("", "{}", "[]", '{"input_size": [3, 1e9, 8]}', '{"input_size": [3, 99999, 8]}', '{"input_size": 3}'):
        found.metadata["preprocess"] = text
        with pytest.raises(InputError, match="gives no input_size"):
            found.input_size()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_packed(tmp_path / PACKED_FILE)
