"""The exported graph: integer constants, exact scales, names, and the same function as the torch model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from export_support import SIZE, calibrate, compressed, images, linear_names, quantize_edit, standard_artifact
from torch import Tensor, nn

from act.backends.census import census
from act.edits import apply_edits
from act.errors import ExportError, InputError
from act.export import export_onnx
from act.layers import compressed_layers, quantize_layers
from act.quant.fake_quant import FakeQuantize
from act.verify.match import Expected, weights_match
from act.verify.onnx_file import OnnxFile
from act.verify.parity import OnnxRuntime, OnnxSession, check_parity, open_session

TINY = (3, 4, 4)


class Pooled(nn.Module):
    """Patch rows [B, 16, 3] through the layers made by `make`, averaged to logits."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        out: Tensor = sum(layer(rows) for layer in self.children())  # type: ignore[assignment]
        return out.mean(1)


def quantized(model: nn.Module, **spec: Any) -> nn.Module:
    layers = {n: {"weight_bits": 8, "activation_bits": 8, **spec} for n in linear_names(model)}
    quantize_layers(model, layers)
    calibrate(model, images(4, TINY))
    return model.eval()


def exported(model: nn.Module, tmp_path: Path, **options: Any) -> OnnxFile:
    export_onnx(model, tmp_path / "m.onnx", TINY, **options)
    return OnnxFile(tmp_path / "m.onnx")


def unoptimized(file: OnnxFile, batch: Tensor) -> Tensor:
    return torch.from_numpy(OnnxSession(open_session(file.path, optimize=False)).run(batch.numpy()))


def test_interface_of_the_file() -> None:
    folder, model = standard_artifact()
    file = OnnxFile(folder / "model.onnx")
    inputs, outputs = file.graph.input, file.graph.output
    assert [value.name for value in (*inputs, *outputs)] == ["images", "logits"]
    assert [value.type.tensor_type.shape.dim[0].dim_param for value in (*inputs, *outputs)] == ["batch", "batch"]
    assert [entry.version for entry in file.model.opset_import if entry.domain == ""] == [20]
    assert {p.key: p.value for p in file.model.metadata_props}["recipe_hash"] == "0" * 64
    for count in (1, 5):
        assert OnnxRuntime().load(file.path).run(images(count).numpy()).shape == (count, 10)
    assert model.training is False


def test_file_holds_no_path_of_the_machine_that_wrote_it() -> None:
    content = (standard_artifact()[0] / "model.onnx").read_bytes()
    for trace in (b"site-packages", b".py", str(Path.cwd()).encode()):
        assert trace not in content


def test_scales_are_the_modules_own_bit_for_bit() -> None:
    folder, model = standard_artifact()
    file = OnnxFile(folder / "model.onnx")
    quantizers = {n: m for n, m in model.named_modules() if isinstance(m, FakeQuantize)}
    assert len(quantizers) == 20
    for name, quantizer in quantizers.items():
        assert file.constant(f"{name}.scale").tobytes() == quantizer.scale.detach().numpy().tobytes(), name


def test_weights_are_stored_once_as_the_modules_codes() -> None:
    folder, model = standard_artifact()
    file = OnnxFile(folder / "model.onnx")
    for name, layer in compressed_layers(model):
        stored = file.constant(f"{name}.weight_int8")
        mask = 1 if layer.weight_mask is None else layer.weight_mask
        codes = layer.weight_quantizer.codes(layer.weight * mask).numpy()  # type: ignore[union-attr]
        assert np.array_equal(stored, codes.T if codes.ndim == 2 else codes), name
    weights = sum(layer.weight.numel() for _, layer in compressed_layers(model))
    others = sum(p.numel() for p in model.parameters()) - weights
    graph_bytes = 60_000  # nodes, names and shapes of about a hundred operators
    assert (folder / "model.onnx").stat().st_size < weights + 4 * others + graph_bytes


def test_every_linear_layer_runs_on_integers() -> None:
    folder, model = standard_artifact()
    counted = census(folder / "model.onnx")
    linear = [name for name, layer in compressed_layers(model) if isinstance(layer, nn.Linear)]
    assert set(counted.integer_nodes) == {f"{name}/MatMul" for name in linear}
    assert "patch_embed.proj/Conv" in counted.float_nodes


def test_export_leaves_the_model_alone(tmp_path: Path) -> None:
    model = quantized(Pooled(a=nn.Linear(3, 8))).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    exported(model, tmp_path)
    assert model.training and list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("opset", [19, 23])
def test_opsets(tmp_path: Path, opset: int) -> None:
    file = exported(quantized(Pooled(a=nn.Linear(3, 8))), tmp_path, opset=opset)
    assert [entry.version for entry in file.model.opset_import if entry.domain == ""] == [opset]
    onnx.checker.check_model(file.model, full_check=True)
    assert census(file.path).integer == 1


@pytest.mark.parametrize("opset", [18, 24])
def test_opset_out_of_range(tmp_path: Path, opset: int) -> None:
    with pytest.raises(InputError, match="19 to 23"):
        export_onnx(nn.Identity(), tmp_path / "m.onnx", TINY, opset=opset)


def test_fewer_bits_clip_as_the_simulation_does(tmp_path: Path) -> None:
    model = quantized(Pooled(a=nn.Linear(3, 8)), weight_bits=3, activation_bits=4)
    file = exported(model, tmp_path)
    assert np.abs(file.constant("a.weight_int8")).max() == 3
    batch = 5 * images(6, TINY)  # far outside the calibrated range
    with torch.no_grad():
        assert torch.allclose(unoptimized(file, batch), model(batch), atol=1e-5)
    check_parity(file, model)


def test_non_negative_input_is_clipped_at_zero(tmp_path: Path) -> None:
    model = quantized(Pooled(a=nn.Linear(3, 8)), signed=False)
    file = exported(model, tmp_path)
    batch = images(6, TINY)
    with torch.no_grad():
        assert torch.allclose(unoptimized(file, batch), model(batch), atol=1e-5)


def test_weight_only_layer_is_an_integer_constant_before_a_float_product(tmp_path: Path) -> None:
    model = quantized(Pooled(a=nn.Linear(3, 8)), activation_bits=0)
    file = exported(model, tmp_path)
    assert [n.op_type for n in file.graph.node].count("QuantizeLinear") == 0
    assert file.constant("a.weight_int8").dtype == np.int8
    assert file.producers[file.producers["logits"].input[0]].op_type != "Gemm"
    check_parity(file, model)


def test_mask_without_quantisers_is_in_the_float_weight(tmp_path: Path) -> None:
    layers = ["blocks.0.mlp.fc1", "blocks.0.attn.qkv"]
    model = compressed([{"op": "mask", "layers": layers, "pattern": "2:4"}], depth=1)
    export_onnx(model, tmp_path / "m.onnx", SIZE)
    file = OnnxFile(tmp_path / "m.onnx")
    for name in layers:
        assert (file.constant(f"{name}.weight_float") == 0).mean() == 0.5
    check_parity(file, model)


def test_quantised_attention_products_run_on_integers(tmp_path: Path) -> None:
    edits = [
        quantize_edit(["blocks.0.attn.qkv", "blocks.0.attn.proj"]),
        {"op": "quantize_matmul", "layers": ["blocks.0.attn"], "activation_bits": 8},
    ]
    model = compressed(edits, depth=1)
    export_onnx(model, tmp_path / "m.onnx", SIZE)
    file = OnnxFile(tmp_path / "m.onnx")
    assert census(file.path).integer == 4
    # Attention weights are non-negative by themselves and need no Clip.
    assert all(node.op_type != "Clip" for node in file.graph.node)
    for index in range(4):
        own = model.get_submodule(f"blocks.0.attn.matmul_quantizers.{index}").scale
        assert file.constant(f"blocks.0.attn.matmul_quantizers.{index}.scale") == own.detach().numpy()
    check_parity(file, model)


def test_layers_that_read_one_tensor_all_run_on_integers(tmp_path: Path) -> None:
    model = quantized(Pooled(q=nn.Linear(3, 8), k=nn.Linear(3, 8), v=nn.Linear(3, 8)))
    file = exported(model, tmp_path)
    assert census(file.path).integer == 3
    check_parity(file, model)


def test_equal_layers_that_the_exporter_merges_stay_verifiable(tmp_path: Path) -> None:
    model = Pooled(a=nn.Linear(3, 8), b=nn.Linear(3, 8))
    model.b.load_state_dict(model.a.state_dict())  # type: ignore[union-attr,operator,arg-type]
    file = exported(quantized(model), tmp_path)
    expected = Expected(weight_bits={"a": 8, "b": 8})
    assert weights_match(file, model.state_dict(), expected).startswith("2 integer weights")


def test_module_used_twice(tmp_path: Path) -> None:
    shared = nn.Linear(3, 3)
    model = quantized(nn.Sequential(nn.Flatten(2), _Rows(), shared, nn.ReLU(), shared, _Mean()))
    check_parity(exported(model, tmp_path), model)


class _Rows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Bypass(nn.Module):
    """Multiplies by a layer's weight without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(48, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.a.weight, self.a.bias)


def test_bypassed_layer_is_refused_when_compressed_only(tmp_path: Path) -> None:
    plain = Bypass().eval()
    check_parity(exported(plain, tmp_path), plain)
    model = Bypass().eval()
    quantize_layers(model, {"a": {"weight_bits": 8, "activation_bits": 8}})
    with pytest.raises(ExportError, match=r"^a: compressed, but the model's forward does not call it"):
        exported(model, tmp_path)


def test_unready_quantisers_are_refused(tmp_path: Path) -> None:
    model = quantized(Pooled(a=nn.Linear(3, 8)))
    with torch.no_grad():
        model.a.input_quantizer.scale.fill_(float("nan"))  # type: ignore[union-attr,operator]
    with pytest.raises(ExportError, match=r"a\.input_quantizer: its scale must be finite"):
        exported(model, tmp_path)
    model.a.input_quantizer.observer = object()  # type: ignore[union-attr]
    with pytest.raises(ExportError, match="still being calibrated"):
        exported(model, tmp_path)
    assert not list(tmp_path.iterdir())


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if float(x.sum()) > 0 else x.flatten(1) * 2


def test_untraceable_forward_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be traced to ONNX"):
        exported(Untraceable(), tmp_path)


def test_learned_scale_is_exported(tmp_path: Path) -> None:
    model = apply_edits(Pooled(a=nn.Linear(3, 8)), [quantize_edit(["a"], learn="lsq")]).eval()
    calibrate(model, images(4, TINY))
    with torch.no_grad():
        model.a.input_quantizer.scale *= 1.25  # type: ignore[union-attr,operator]
    file = exported(model, tmp_path)
    assert file.constant("a.input_quantizer.scale") == model.a.input_quantizer.scale.detach().numpy()  # type: ignore[union-attr,operator]
