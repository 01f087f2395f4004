#!/usr/bin/env python3
"""Run a recipe on a reference benchmark and score the exported file with the benchmark's own script.

    python benchmarks/refbench.py RECIPE --bench tinyimagenet|imagenette --dir DIR [key=value ...]

The benchmark lies in the folder that VITCOMPRESS_REFBENCH names (default: ../shared/refbench beside the repository).
Model, checkpoint, data and preprocessing are the benchmark's, given as overrides before those of the command line.
Training images are used without labels unless --labelled is given. The validation images measure only: nothing is
chosen by them. Prints one JSON line; `top1` and `agreement_fp32` are percentages of score.py on the exported file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BENCHES: dict[str, dict[str, Any]] = {
    "tinyimagenet": {
        "model": "vit_tiny_patch16_224",
        "classes": 200,
        "train": "train",
        "images": {
            "resize": 256,
            "interpolation": "bilinear",
            "mean": "[0.5,0.5,0.5]",
            "std": "[0.5,0.5,0.5]",
        },
    },
    "imagenette": {
        "model": "deit_tiny_patch16_224",
        "classes": 1000,
        "train": "calib",
        "images": {
            "resize": 248,
            "interpolation": "bicubic",
            "mean": "[0.485,0.456,0.406]",
            "std": "[0.229,0.224,0.225]",
        },
    },
}


def bench_root() -> Path:
    """The folder of the benchmarks; exits with a message when it is not there."""
    root = Path(os.environ.get("VITCOMPRESS_REFBENCH", ROOT.parent / "shared" / "refbench")).resolve()
    if not (root / "score.py").is_file():
        sys.exit(f"refbench: {root} has no score.py; set VITCOMPRESS_REFBENCH to the benchmarks' folder")
    return root


def without_labels(images: Path, folder: Path) -> Path:
    """A folder of links to the images of the class folders in `images`, all in one place and so unlabelled."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(images.glob("*/*")):
        link = folder / f"{path.parent.name}_{path.name}"
        if not link.is_symlink():
            link.symlink_to(path)
    return folder


def bench_overrides(root: Path, bench: str, train: Path) -> list[str]:
    """The benchmark's model, data and preprocessing as `key=value`; nothing is trained or selected on `val`."""
    spec, home = BENCHES[bench], root / bench
    return [
        f"model.name={spec['model']}",
        f"model.checkpoint={home / spec['model']}.safetensors",
        f"model.num_classes={spec['classes']}",
        f"data.train={train}",
        f"data.val={home / 'val'}",
        f"data.class_map={home / 'classes.txt'}",
        "data.input_size=[3,224,224]",
        "data.crop_pct=null",
        *(f"data.{key}={value}" for key, value in spec["images"].items()),
        "TrainConfig.select=last",
        "TrainConfig.eval_iter=null",
        "TrainConfig.target_metric=null",
    ]


def rows_argument(parser: argparse.ArgumentParser, known: Iterable[str]) -> None:
    """`--rows` for a table of which some rows may be wanted; all of them by default."""
    names = list(known)

    def chosen(text: str) -> list[str]:
        if unknown := sorted(set(text.split(";")) - set(names)):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: unknown; there are {'; '.join(names)}")
        return text.split(";")

    parser.add_argument("--rows", type=chosen, default=names, help="names of rows, with semicolons between")


def score(root: Path, bench: str, file: Path) -> dict[str, Any]:
    """The line that the benchmark's own script prints for an exported file."""
    command = [sys.executable, str(root / "score.py"), bench, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"refbench: score.py failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="path or name of a recipe")
    parser.add_argument("--bench", choices=tuple(BENCHES), required=True)
    parser.add_argument("--dir", type=Path, required=True, help="run folder; an interrupted run in it continues")
    parser.add_argument("--labelled", action="store_true", help="train with the labels of the training images")
    parser.add_argument("--shared", type=Path, help="a folder in common with other runs, for stages that are equal")
    parser.add_argument("--force", action="store_true", help="take over a folder of another recipe")
    parser.add_argument("--reproduce", action="store_true", help="`vitcompress reproduce`: do recorded results hold?")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further changes of the recipe")
    args = parser.parse_intermixed_args()

    from act.run.spin import sleep_early

    sleep_early()
    from act.cli.main import main as vitcompress
    from act.errors import ActError
    from act.recipe.load import load_recipe
    from act.run.runner import run
    from act.run.stop import Stopped

    root = bench_root()
    images = root / args.bench / BENCHES[args.bench]["train"]
    # Beside the run folder, which must be the run's alone.
    train = images if args.labelled else without_labels(images, args.dir.resolve().with_name(f"{args.dir.name}-images"))
    settings = [*bench_overrides(root, args.bench, train), *args.overrides]
    if args.reproduce:
        return vitcompress(["reproduce", args.recipe, "--dir", str(args.dir), *settings])
    begin = time.monotonic()
    try:
        recipe = load_recipe(args.recipe, settings)
        result = run(recipe, args.dir, force=args.force, shared=args.shared)
    except ActError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except Stopped as stopped:
        print(f"refbench: {stopped}; the same command continues", file=sys.stderr)
        return stopped.exit_code
    seconds = time.monotonic() - begin
    scored = score(root, args.bench, result.onnx)
    stages = {
        stage["name"]: {key: stage[key] for key in ("seconds", "top1", "agreement", "peak_rss_mb") if key in stage}
        for stage in result.report["stages"]
    }
    line = {
        "recipe": args.recipe,
        "overrides": args.overrides,
        "bench": args.bench,
        "labelled": args.labelled,
        "top1": scored["top1"],
        "agreement_fp32": scored["agreement_fp32"],
        "bytes": scored["bytes"],
        "seconds": round(seconds, 1),
        "status": result.status,
        "stages": stages,
        "speedup": result.report["artifacts"][0].get("speedup", {}),
    }
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
