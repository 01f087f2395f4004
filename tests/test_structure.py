"""Units masked to zero and units really removed are the same model, in every family."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision.models import VisionTransformer

from act.edits import apply_edit
from act.models import logits
from act.structure.axes import HEADS, HIDDEN, K, Q, V, find_tensor
from act.structure.shrink import Maps, masked_tensors, set_tensors, shrunk_tensors
from act.structure.units import AttentionUnits, MlpUnits, find_units
from act.structure.width import kept_channels, residual_stream
from act.torch_attention import with_layers

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "vit without qkv bias": ("vit_tiny_patch16_224", {**VIT, "qkv_bias": False}),
    "vit with q/k norm": ("vit_tiny_patch16_224", {**VIT, "qk_norm": True}),
    "deit": ("deit_tiny_patch16_224", VIT),
    "deit distilled": ("deit_tiny_distilled_patch16_224", VIT),
    "deit3": ("deit3_small_patch16_224", VIT),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "window_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)},
    ),
    "beit": ("beit_base_patch16_224", VIT),
    "beit with shared positions": ("beit_base_patch16_224", {**VIT, "use_shared_rel_pos_bias": True}),
    "cait": ("cait_xxs24_224", {**VIT, "depth": 1, "depth_token_only": 1}),
    "pvt2": ("pvt_v2_b0", {"depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "embed_dims": (16, 32, 32, 64)}),
    "pvt2 linear": ("pvt_v2_b2_li", {"depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "embed_dims": (8, 16, 16, 32)}),
    "eva02": ("eva02_tiny_patch14_224", {**VIT, "dynamic_img_size": False}),
    "eva with joint qkv": (
        "eva02_base_patch14_224",
        {**VIT, "qkv_fused": True, "scale_mlp": False, "scale_attn_inner": False},
    ),
    "dinov2": ("vit_small_patch14_dinov2", VIT),
    "dinov2 giant's MLP": ("vit_giant_patch14_dinov2", {**VIT, "mlp_ratio": 4}),
    "dinov3": ("vit_small_patch16_dinov3", VIT),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (16, 32, 32, 64)}),
    "mobilevit": ("mobilevit_xxs", {}),
}


def torchvision_vit() -> nn.Module:
    """Blocks with nn.MultiheadAttention, and with an MLP that is a sequence."""
    model = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=96, num_classes=10
    )
    return with_layers(model)


def build(family: str) -> nn.Module:
    torch.manual_seed(0)
    if family == "torchvision":
        model = torchvision_vit()
    else:
        name, arguments = FAMILIES[family]
        model = timm.create_model(name, num_classes=10, **arguments)
    with torch.no_grad():  # freshly built tables and LayerScales are zero or nearly so, and would hide errors
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.double().eval()


def some_units(model: nn.Module, seed: int = 1) -> tuple[Maps, dict[str, Any]]:
    """Random units to keep in every group, and the edit that cuts to as many."""
    draw = torch.Generator().manual_seed(seed)
    maps: Maps = {}
    edit: dict[str, Any] = {"op": "shrink", "attention": {}, "mlp": {}}

    def pick(count: int, of: int) -> torch.Tensor:
        return torch.randperm(of, generator=draw)[:count].sort().values

    for group in find_units(model).groups:
        if isinstance(group, MlpUnits):
            size = group.hidden * 5 // 8
            maps[group.name] = {HIDDEN: pick(size, group.hidden)}
            edit["mlp"][group.name] = size
            continue
        heads = group.heads if group.heads_reason else max(1, group.heads - 1)
        qk = group.qk_dim if group.qk_reason else group.qk_dim // 2
        v = group.v_dim if group.v_reason else group.v_dim * 3 // 4
        kept = pick(heads, group.heads)
        wide = torch.cat([head * group.qk_dim + pick(qk, group.qk_dim) for head in kept])
        narrow = torch.cat([head * group.v_dim + pick(v, group.v_dim) for head in kept])
        maps[group.name] = {Q: wide, K: wide, V: narrow, HEADS: kept}
        edit["attention"][group.name] = {"heads": heads, "qk": qk, "v": v}
    return maps, edit


@pytest.mark.parametrize("family", [*FAMILIES, "torchvision"])
def test_removed_units_equal_masked_units(family: str) -> None:
    dense = build(family)
    found = find_units(dense)
    maps, edit = some_units(dense)
    masked, small = deepcopy(dense), deepcopy(dense)
    set_tensors(masked, masked_tensors(dense, found, maps))
    apply_edit(small, edit)
    set_tensors(small, shrunk_tensors(dense, found, maps))
    size = 64 if "mobile" in family else 32
    images = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before, zeroed, removed = (logits(model(images)) for model in (dense, masked, small))
    assert (zeroed - before).abs().max() > 1e-4
    torch.testing.assert_close(removed, zeroed, atol=1e-9, rtol=0)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in dense.parameters())
    again = find_units(small)
    assert [group.name for group in again.groups] == [group.name for group in found.groups]
    for group in again.groups:
        if isinstance(group, AttentionUnits):
            assert {"heads": group.heads, "qk": group.qk_dim, "v": group.v_dim} == edit["attention"][group.name]
        else:
            assert group.hidden == edit["mlp"][group.name]


@pytest.mark.parametrize(
    "family", [*(name for name in FAMILIES if name not in ("convnext", "pvt2 linear")), "torchvision"]
)
def test_every_family_has_its_attention(family: str) -> None:
    found = find_units(build(family))
    assert any(isinstance(group, AttentionUnits) for group in found.groups)


class MaskedNorm(nn.Module):
    """A LayerNorm over the kept channels only, the others zero: what a narrower model computes, at full width."""

    def __init__(self, norm: nn.LayerNorm, kept: torch.Tensor) -> None:
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = nn.functional.layer_norm(
            x[..., self.kept], [len(self.kept)], self.norm.weight[self.kept], self.norm.bias[self.kept], self.norm.eps
        )
        return torch.zeros_like(x).index_copy(-1, self.kept, own)


@pytest.mark.parametrize(
    "family",
    ["vit", "vit without qkv bias", "deit", "deit distilled", "deit3", "beit", "cait", "dinov2", "dinov3", "eva02"],
)
def test_a_narrower_stream_equals_a_masked_one(family: str) -> None:
    dense = build(family)
    stream = residual_stream(dense)
    assert not isinstance(stream, str)
    kept = torch.randperm(48, generator=torch.Generator().manual_seed(3))[:32].sort().values
    small, masked = deepcopy(dense), deepcopy(dense)
    apply_edit(small, {"op": "narrow", "width": 32})
    set_tensors(small, kept_channels(dense, stream, kept))
    mask = torch.zeros(48, dtype=torch.float64).index_fill(0, kept, 1.0)
    for segment in stream.segments:
        tensor = find_tensor(masked, segment.tensor)
        shape = [1] * tensor.dim()
        shape[segment.axis] = -1
        tensor.data.mul_(mask.view(shape))
    norms = [name for name, module in masked.named_modules() if isinstance(module, nn.LayerNorm)]
    for name in norms:
        owner, _, leaf = name.rpartition(".")
        norm = masked.get_submodule(name)
        if norm.normalized_shape == (48,):
            setattr(masked.get_submodule(owner), leaf, MaskedNorm(norm, kept))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before, zeroed, narrowed = (logits(model(images)) for model in (dense, masked, small))
    assert (zeroed - before).abs().max() > 1e-4
    torch.testing.assert_close(narrowed, zeroed, atol=1e-9, rtol=0)


def test_a_stream_of_several_widths_says_so() -> None:
    assert isinstance(residual_stream(build("swin")), str)
