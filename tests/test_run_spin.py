"""Threads that wait for others sleep early, unless the user says otherwise."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from act.run.spin import COUNT, TURNS, VARIABLES, sleep_early


@pytest.mark.skipif(sys.platform != "linux", reason="torch computes with GNU's OpenMP on Linux only")
@pytest.mark.parametrize(("variables", "turns"), [({}, TURNS), ({COUNT: "77"}, 77)])
def test_the_command_tells_openmp(variables: dict[str, str], turns: int) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    environment |= {"OMP_DISPLAY_ENV": "verbose", **variables}
    command = [sys.executable, "-m", "act", "nodes", "quickstart", "--quiet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    said = re.findall(rf"{COUNT} = '(\d+)'", done.stderr)
    assert said and set(said) == {str(turns)}


def test_nothing_is_set_where_it_would_change_nothing_or_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COUNT, raising=False)
    import torch

    sleep_early()  # too late
    assert COUNT not in os.environ
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    sleep_early()
    assert COUNT not in os.environ
    monkeypatch.setitem(sys.modules, "torch", torch)
