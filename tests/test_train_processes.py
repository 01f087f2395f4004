"""Two processes train the same model as one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("train_two_processes.py")
# accelerate's own `launch --cpu --num_processes 2` starts one process unless there is an MPI; its --multi_gpu starts
# two through torchrun, and the training then takes the CPU because that is the device of its context.
LAUNCH = ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--dynamo_backend", "no"]


def launch(folder: Path, kill: int) -> None:
    command = [
        sys.executable,
        "-m",
        *LAUNCH,
        "--mixed_precision",
        "no",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent.parent)}
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder), str(kill)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_resumed_give_the_model_of_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    launch(tmp_path / "two", kill=4)
    spec = importlib.util.spec_from_file_location("train_two_processes", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(tmp_path / "one", None)
    reports = [json.loads((tmp_path / "two" / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    # Process 1 evaluates nothing and learns the decision from process 0.
    assert reports == [
        {"processes": 2, "metric": 3.0, "evaluations": 3},
        {"processes": 2, "metric": 3.0, "evaluations": 0},
    ]
    one = load_file(tmp_path / "one" / "rank0.safetensors")
    two, other = (load_file(tmp_path / "two" / f"rank{rank}.safetensors") for rank in (0, 1))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        assert torch.equal(two[name], other[name])
