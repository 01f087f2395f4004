"""A small recipe on the embedded digits, its command as a process, and what two runs of it must have in common."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "name": "vit_tiny_patch16_224",
        "num_classes": 10,
        "kwargs": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
    },
    "data": {
        "train": "builtin:digits.tar/train",
        "val": "builtin:digits.tar/val",
        "batch_size": 16,
        "workers": 0,
        "limit_train": 96,
        "limit_val": 48,
        "calibration_images": 32,
        "interpolation": "bilinear",
        "mean": [0.5],
        "std": [0.5],
        "augment": {"hflip": 0.0, "shift": 2},
    },
    "Distillation": {},
    "Prune": {"pattern": "2:4"},
    "QuantAware": {"use_pact": True},
    "TrainConfig": {"train_iter": 12, "learning_rate": 1e-3, "save_iter": 2, "logging_iter": 1, "eval_iter": 5},
    "export": {"formats": ["onnx"], "benchmark": False},
}
# One thread, since the order of additions, and with it the last bit, depends on how many there are.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
# What depends on the clock and the machine's load, of report.json.
TIMES = ("seconds", "step_seconds", "images_per_second", "peak_rss_mb", "latency", "speedup")


def write_recipe(folder: Path, **sections: Any) -> Path:
    """The recipe as a file, with other sections in place of its own; the model gets weights, which are made here."""
    import timm
    import torch
    from safetensors.torch import save_file

    recipe = RECIPE | sections
    weights = folder / "weights.safetensors"
    if not weights.exists():
        torch.manual_seed(0)
        model = timm.create_model(recipe["model"]["name"], num_classes=10, in_chans=3, **recipe["model"]["kwargs"])
        save_file(model.state_dict(), weights)
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(recipe | {"model": {**recipe["model"], "checkpoint": str(weights)}}))
    return path


def command(recipe: Path, folder: Path, *words: str) -> list[str]:
    """The command line of a run."""
    return [sys.executable, "-m", "act", "run", str(recipe), "--dir", str(folder), *words]


def start(recipe: Path, folder: Path, *words: str, **options: Any) -> subprocess.Popen[str]:
    """The run as a process of its own, with its messages in a pipe."""
    return subprocess.Popen(
        command(recipe, folder, *words),
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_ctrl_c,
        **options,
    )


def _heed_ctrl_c() -> None:
    """Tests that run in the background have SIGINT ignored, and so would their processes."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(recipe: Path, folder: Path, *words: str, code: int = 0) -> str:
    """The run to its end, which must be `code`; its messages."""
    done = subprocess.run(
        command(recipe, folder, *words), env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def events(folder: Path) -> list[dict[str, Any]]:
    """The events of a run so far."""
    from act.run.log import read_events

    return read_events(folder / "events.jsonl")


def report(folder: Path) -> Any:
    """report.json without what differs between two runs of one recipe: times and memory."""

    def steady(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: steady(item) for key, item in value.items() if key not in TIMES}
        return [steady(item) for item in value] if isinstance(value, list) else value

    return steady(json.loads((folder / "report.json").read_text()))


def same_results(one: Path, other: Path) -> None:
    """Both folders hold the same weights, files, predictions and report, and the same names; nothing is left over."""
    ignored = {"events.jsonl", "report.html", "report.json", "recipe.yaml", "metrics.json", "done.json"}
    ignored |= {"manifest.json", "delivered.json"}  # hashes of files that have times in them
    names = [{str(path.relative_to(folder)) for path in folder.rglob("*")} for folder in (one, other)]
    assert names[0] == names[1]
    for name in sorted(names[0]):
        if (one / name).is_file() and Path(name).name not in ignored:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert report(one) == report(other)
