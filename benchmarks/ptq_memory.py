#!/usr/bin/env python3
"""Time and peak memory of post-training quantisation: calibrate, export, open, score and verify.

    python benchmarks/ptq_memory.py [--model vit_base_patch16_224] [--images 64] [--formats onnx,openvino]
                                     [--quant JSON] [--dir DIR]

Random weights and noise images: what is measured does not depend on them. Prints one JSON line; `run_seconds` is the
whole run, with the original's own export, scoring and timing; `stage_seconds` is preparation and calibration alone.
`--quant` holds options of QuantPost. With `--dir` the run folder stays, for `vitcompress bench DIR`.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from act.recipe.load import recipe_from_dict
from act.run.runner import run
from act.verify.folder import verify_folder


def noise_images(folder: Path, count: int) -> Path:
    """`count` JPEGs of blurred noise, 256 x 256."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        coarse.resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{index:04d}.jpg")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--formats", default="onnx")
    parser.add_argument("--quant", default={}, type=json.loads)
    parser.add_argument("--dir", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        folder = args.dir or home / "run"
        recipe = recipe_from_dict(
            {
                "name": "ptq_memory",
                "model": {"name": args.model},
                "data": {
                    "train": str(noise_images(home / "train", args.images)),
                    "val": str(noise_images(home / "val", 16)),
                    "calibration_images": args.images,
                    "batch_size": 16,
                },
                "QuantPost": args.quant,
                "export": {"formats": args.formats.split(","), "min_agreement": 0.0, "benchmark_batches": [1]},
            }
        )
        begin = time.monotonic()
        result = run(recipe, folder)
        ran = time.monotonic() - begin
        checks = verify_folder(folder)
        report = {
            "model": args.model,
            "calibration_images": args.images,
            "threads": torch.get_num_threads(),
            "run_seconds": round(ran),
            "stage_seconds": round(result.report["stages"][0]["seconds"]),
            "verify_seconds": round(time.monotonic() - begin - ran),
            "verified": all(check.holds for check in checks),
            "bytes": result.report["artifacts"][0]["bytes"],
            "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2, 2),
        }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
