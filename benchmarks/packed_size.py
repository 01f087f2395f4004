#!/usr/bin/env python3
"""Size of the packed file of a pruned and quantised model, and what keeps it from the arithmetic limit.

    python benchmarks/packed_size.py [--model deit_base_patch16_224] [--bits 8,4] [--group-size 0] [--singles]

Random weights: the size does not depend on them. Blocks are pruned, 2:4 with 8 bits and 4:8 in pairs with fewer (2:4
with `--singles`); patch embedding and head are quantised and stay dense, as the recipes do it. Each weight has a scale
for each output channel, or for each `--group-size` values along K. "above the limit" is what a part takes beyond its
share of a file at the limit of the pruned weights: fp32 bytes / limit. The sum of the column is what the file has above
that limit. Seconds are those of one process, without building the model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from act.edits import apply_edits
from act.layers import compressed_layers, weight_groups
from act.rebuild import unique_tensors
from act.sparsity.masks import nm_mask
from act.storage.file import read_packed, write_packed
from act.storage.pack import pack_tensors
from act.storage.sizes import size_report


def compress(model: nn.Module, bits: int, group_size: int, pairs: bool) -> list[dict[str, Any]]:
    """Masks by magnitude on the blocks, ranges by the largest value; returns the edits."""
    names = [name for name, module in model.named_modules() if type(module) in (nn.Linear, nn.Conv2d)]
    blocks = [name for name in names if any(word.isdecimal() for word in name.split("."))]
    spec = {"weight_bits": bits, "activation_bits": 8}
    grouped = spec | {"weight_group_size": group_size}
    edits = [
        {"op": "mask", "layers": blocks, "pattern": "4:8" if pairs else "2:4"},
        {"op": "quantize", "layers": {name: grouped if name in blocks else spec for name in names}},
    ]
    apply_edits(model, edits)
    for name, layer in compressed_layers(model):
        weight = layer.weight.detach()
        if layer.weight_mask is not None:
            weight_groups(weight, group_size, name)
            score = weight.abs().unflatten(1, (-1, 2)).sum(-1) if pairs else weight.abs()
            layer.weight_mask.copy_(nm_mask(score, 2, 4).repeat_interleave(2 if pairs else 1, 1))
        assert layer.weight_quantizer is not None
        layer.weight_quantizer.set_range(layer.weight_quantizer.rows(weight).abs().amax(-1))
    return edits


def measure(name: str, bits: int, group_size: int, singles: bool) -> None:
    """Print the table of one model."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_file(unique_tensors(model.state_dict())[0], Path(folder) / "fp32.safetensors")
        original = (Path(folder) / "fp32.safetensors").stat().st_size
        edits = compress(model, bits, group_size, bits < 8 and not singles)
        tensors, shared = unique_tensors(model.state_dict())
        path, begin = Path(folder) / "packed.safetensors", (time.perf_counter(), time.process_time())
        packed = pack_tensors(path, tensors, edits, shared, {}).file
        write_packed(packed)
        wrote = (time.perf_counter(), time.process_time())
        size = path.stat().st_size
        state = read_packed(path).state()
        read = (time.perf_counter(), time.process_time())
    assert all(torch.equal(tensor, state[key]) for key, tensor in tensors.items() if not key.endswith(".weight"))
    found = size_report(packed, size)
    sparse = next(layout for layout in packed.layouts.values() if not layout.dense)
    limit = 32 * sparse.size / (8 * (sparse.value_bytes + sparse.index_bytes))
    print(f"{name}, {sparse.label()}, {f'groups of {group_size}' if group_size else 'one scale a channel'}")
    print(f"{'part':32} {'bytes':>12} {'fp32 bytes':>12} {'ratio':>7} {'above the limit':>16}")
    for part in found["breakdown"]:
        ratio = f"{part['fp32_bytes'] / part['bytes']:.2f}" if part["fp32_bytes"] else ""
        above = part["bytes"] - part["fp32_bytes"] / limit
        print(f"{part['part']:32} {part['bytes']:12,} {part['fp32_bytes']:12,} {ratio:>7} {above:16,.0f}")
    print(f"{'file':32} {size:12,} {original:12,} {original / size:7.2f} {size - original / limit:16,.0f}")
    with_scales = found["sparse_weights_ratio_with_scales"]
    print(f"pruned weights {found['sparse_weights_ratio']:.2f}x of {limit:.2f}x, with their scales {with_scales:.2f}x")
    seconds = [f"{after[0] - before[0]:.1f} s ({after[1] - before[1]:.1f} s of processor)" for before, after in
               ((begin, wrote), (wrote, read))]  # fmt: skip
    print(f"packed and written in {seconds[0]}, read and unpacked in {seconds[1]}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_base_patch16_224")
    parser.add_argument("--bits", default="8,4")
    parser.add_argument("--group-size", type=int, default=0)
    parser.add_argument("--singles", action="store_true")
    args = parser.parse_args()
    for bits in args.bits.split(","):
        measure(args.model, int(bits), args.group_size, args.singles)
    return 0


if __name__ == "__main__":
    sys.exit(main())
