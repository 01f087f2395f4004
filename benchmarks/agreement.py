#!/usr/bin/env python3
"""How often the files of one run predict the same, in their own runtimes, as each other and as the torch model.

    python benchmarks/agreement.py RUN [--images 2000] [key=value ...]

RUN is a finished run folder whose recipe names validation images; words change the recipe. Prints percent of the first
images of data.val for each pair, the original among them.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np

from act.api import load
from act.backends import get_backend
from act.data.bundle import DataBundle
from act.data.preprocess import resolve_preprocess
from act.models import load_model
from act.recipe.load import load_recipe
from act.run.evaluate import Predictions, evaluate
from act.run.metrics import ExportedModule

RUNTIMES = {".onnx": "onnxruntime", ".xml": "openvino"}


def predictions(run: Path, images: int, words: list[str]) -> dict[str, Predictions]:
    """Predicted classes by the name of what predicts."""
    recipe = load_recipe(str(run / "recipe.yaml"), words)
    recipe.data.limit_val = images
    recipe.data.train = recipe.data.calibration = None
    original = load_model(recipe.model)
    data = DataBundle(recipe.data, resolve_preprocess(original, recipe.data), recipe.seed)
    models = {"original": original, "torch": load(run)}
    for path in sorted((run / "artifact").iterdir()):
        if path.suffix in RUNTIMES:
            session = get_backend(RUNTIMES[path.suffix]).load(path)
            models[path.name] = ExportedModule(session.run)
    return {name: evaluate(model, data.val(64))["predictions"] for name, model in models.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="of data.val, the first")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    found = predictions(args.run, args.images, args.overrides)
    count = len(next(iter(found.values())))
    print(f"| {args.run.name}, {count} images | agreement |\n|---|---|")
    for one, other in itertools.combinations(found, 2):
        print(f"| {one} / {other} | {100 * float(np.mean(found[one] == found[other])):.2f} % |")


if __name__ == "__main__":
    main()
