#!/usr/bin/env python3
"""What structured pruning and int8 buy in speed: one model in several structures, against ONNX Runtime in float32.

    python benchmarks/structure_speed.py --model vit_small_patch16_224 [--batch 8] [--threads 2] [--rounds 20]

Weights are random, since speed does not depend on them. Every structure is exported in float32 and with quantisers in
the forms for ONNX Runtime and OpenVINO, attention on integers, and all files are run in turns. A structure is
`heads x hidden x blocks` as shares of the original; `--structures` takes a list of them.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import timm
import torch
from torch import nn

from act.analysis import analyze
from act.backends import get_backend
from act.context import Context
from act.depth.find import removable_blocks
from act.edits import apply_edit
from act.quant.config import QuantConfig
from act.recipe.schema import ExportConfig, Recipe, TargetConfig
from act.run.formats import FORMATS, Job
from act.run.timing import noise, time_rounds
from act.structure.latency import stand_in_quantizers
from act.structure.shrink import shrink_edit
from act.structure.units import AttentionUnits, find_units

STRUCTURES = "1x1x1,0.5x0.5x1,0.34x0.63x1,0.67x0.38x1,0.5x1x0.75,1x0.5x0.75,0.67x0.75x0.67,1x1x0.5"
INT8 = QuantConfig(quantize_op_types=["linear", "conv2d", "matmul"])
RUNTIMES = ("onnxruntime", "openvino")


def structured(model: nn.Module, heads: float, hidden: float, blocks: float, size: tuple[int, int, int]) -> nn.Module:
    """A copy with those shares of heads, hidden units and blocks."""
    twin = copy.deepcopy(model)
    names = removable_blocks(twin, size, ["*"], []).done
    keep = round(blocks * len(names))
    if keep < len(names):
        apply_edit(twin, {"op": "remove_blocks", "layers": names[keep:]})
    sizes = {}
    for group in find_units(twin).groups:
        if isinstance(group, AttentionUnits):
            sizes[group.name] = (max(1, round(heads * group.heads)), group.qk_dim, group.v_dim)
        else:
            sizes[group.name] = (round(hidden * group.hidden / 32) * 32,)
    apply_edit(twin, shrink_edit(sizes))
    return twin


def files(model: nn.Module, folder: Path, ctx: Context) -> dict[str, tuple[str, Path]]:
    """Backend and file by name: float32, and int8 in each runtime."""
    (folder / "fp32").mkdir(parents=True)
    (folder / "int8").mkdir()
    plain = Job(model, folder / "fp32" / "model.onnx", ctx, {})
    found = {"float32": ("onnxruntime", FORMATS["onnx"].write(plain).path)}
    twin = copy.deepcopy(model)
    stand_in_quantizers(twin, INT8, ctx)
    job = Job(twin, folder / "int8" / "model.onnx", ctx, {})
    FORMATS["onnx"].write(job)
    return found | {f"int8 {name}": (name, FORMATS[name].write(job).path) for name in RUNTIMES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--structures", default=STRUCTURES)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model(args.model).eval()
    size = (3, 224, 224)
    # Attention in integers is the faster form there; which one is kept is measured in a run.
    recipe = Recipe(export=ExportConfig(attention="int8", threads=args.threads), target=TargetConfig(batch=args.batch))
    ctx = Context(recipe, size)
    whole = analyze(model, size).macs
    runs, macs = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for text in args.structures.split(","):
            shares = tuple(map(float, text.split("x")))
            twin = structured(model, *shares, size)
            macs[text] = analyze(twin, size).macs / whole
            for name, (backend, path) in files(twin, Path(folder) / text, replace(ctx, edits=[])).items():
                runs[f"{text}|{name}"] = get_backend(backend).load(path, args.threads).run
        taken = time_rounds(runs, noise(args.batch, size), args.rounds)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    first = args.structures.split(",")[0]
    base = medians[f"{first}|float32"]
    columns = " | ".join(f"int8 {name}" for name in RUNTIMES)
    print(f"| heads x hidden x blocks | MACs | float32 | {columns} | int8 / float32 |")
    print("|---|---|---|---|---|---|")
    for text, share in macs.items():
        own = [base / medians[f"{text}|{name}"] for name in ("float32", *(f"int8 {name}" for name in RUNTIMES))]
        cells = " | ".join(f"{value:.2f}x" for value in own)
        print(f"| {text} | {100 * share:.0f} % | {cells} | {max(own[1:]) / own[0]:.2f}x |")
    print(f"\n{args.model}, batch {args.batch}, {args.threads} threads; float32 in ONNX Runtime: {base:.1f} ms")


if __name__ == "__main__":
    main()
