"""Sampled rows and their weights: the Fisher information of the prediction, token by token."""

import timm
import torch

from act.quant.rows import ROWS, Grid, InputRows, collect_rows, output_error, weighted_mean

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}


def test_tokens_that_no_prediction_depends_on_weigh_nothing() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SIZE).eval()
    images = torch.randn(8, 3, 32, 32)
    seen = collect_rows(model, ["blocks.1.mlp.fc2", "blocks.0.mlp.fc2", "head"], [images], 8)
    # The head reads the class token alone: of 17 tokens in the last block only one matters, and in the first all do.
    last, first = seen["blocks.1.mlp.fc2"].weights, seen["blocks.0.mlp.fc2"].weights
    assert len(last) == len(first) == 8 * 17
    assert int((last > 0).sum()) == 8 and torch.allclose(last[last > 0], torch.tensor(17.0))
    assert int((first > 0).sum()) == 8 * 17 and abs(float(first.mean()) - 1) < 1e-4
    assert torch.allclose(seen["head"].weights, torch.ones(8))


def test_extremes_count_every_image_and_rows_are_bounded() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SIZE).eval()
    batches = [torch.randn(40, 3, 32, 32) * scale for scale in (1.0, 1.0, 5.0)]
    inputs: list[torch.Tensor] = []
    model.blocks[0].attn.qkv.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    seen = collect_rows(model, ["blocks.0.attn.qkv"], batches, 120)["blocks.0.attn.qkv"]
    everything = torch.cat(inputs)
    assert everything.shape[0] == 120
    assert torch.equal(seen.largest, everything.reshape(-1, 48).abs().amax(0))
    assert ROWS * 0.9 <= len(seen.rows) <= ROWS * 1.1 and len(seen.rows) == len(seen.weights)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_output_error_against_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(50, 12, generator=generator), torch.randn(7, 12, generator=generator)
    factor, weights = torch.rand(12, generator=generator) + 0.5, torch.rand(50, generator=generator)
    seen = InputRows(rows.abs().amax(0), [rows], [weights])
    clip = float((rows / factor).abs().max())
    x, w = (rows / factor).double(), (weight * factor).double()
    scale_x, scale_w = clip / 127, w.abs().amax(1, keepdim=True) / 7
    quantized = ((x / scale_x).round() * scale_x) @ ((w / scale_w).round() * scale_w).t()
    expected = (quantized - x @ w.t()).square().mean(1)
    expected_mean = float((expected * weights).sum() / weights.sum())
    assert abs(output_error(seen, rows @ weight.t(), factor, weight, clip, Grid(4, 8)) / expected_mean - 1) < 1e-3
    assert weighted_mean(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 3.0])) == 2.5
