"""Memory that is kept in large pages: in processes of their own, since it changes the whole process."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from act.run.large_pages import SWITCH, large_pages, why_not

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SCRIPT = """
import json, re, resource, torch
from act.run.large_pages import large_pages
from act.run.memory import reset_peak

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

def fill():
    before = faults()
    for block in [torch.ones(64 << 20, dtype=torch.uint8) for _ in range(4)]:
        del block
    return faults() - before

found = {}
with large_pages():
    with large_pages():
        fill()
    found["again"] = fill()
    heap = open("/proc/self/smaps").read().partition("[heap]")[2]
    flags = re.search(r"VmFlags:(.*)", heap)
    found["large"] = None if flags is None else "hg" in flags[1].split()
    found["kept"] = resident()
    reset_peak()
    found["between"] = resident()
    fill()
    found["anew"] = fill()
found["after"] = resident()
print(json.dumps(found))
"""


@needs_glibc
@pytest.mark.parametrize("asked", [True, False])
def test_freed_memory_stays_for_the_next_step_and_is_given_back_at_the_end(asked: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != SWITCH}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment if asked else environment | {SWITCH: "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    pages = (256 << 20) // 4096
    assert (found["again"] < pages / 20) == asked, found
    assert (found["kept"] - found["after"] > 200) == asked, found
    assert found["anew"] < pages / 20 or not asked, found
    assert found["between"] < found["kept"] - 200 or not asked, found
    assert found["large"] in (None, asked and THP.exists()), found


def test_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("act.run.large_pages.platform.libc_ver", lambda: ("glibc", "2.36"))
    kernel = tmp_path / "enabled"
    monkeypatch.setattr("act.run.large_pages._KERNEL", kernel)
    assert str(why_not()).startswith("the kernel has none; write madvise to ")
    kernel.write_text("always [madvise] never")
    assert why_not() is None
    kernel.write_text("always madvise [never]")
    assert why_not() is not None
    monkeypatch.setenv(SWITCH, "0")
    assert why_not() == "VITCOMPRESS_LARGE_PAGES is 0"


def test_elsewhere_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("act.run.large_pages.platform.libc_ver", lambda: ("", ""))
    monkeypatch.setattr("act.run.large_pages.ctypes.CDLL", lambda name: pytest.fail("a library was called"))
    with large_pages():
        pass
    with pytest.raises(KeyError), large_pages():
        raise KeyError
