"""A report with everything in it, and a real browser to look at pages."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_BROWSER = "chromium is not installed"


def timing(median: float) -> dict[str, float]:
    return {"median_ms": median, "p90_ms": 1.2 * median}


def file_entry(kind: str, runtime: str, top1: float, factor: float) -> dict[str, Any]:
    times = {"1": timing(20 / factor), "8": timing(150 / factor)}
    return {
        "format": kind,
        "path": f"artifact/model.{kind}",
        "sha256": "ab" * 32,
        "bytes": 6_000_000,
        "top1": top1,
        "agreement": 90.0,
        "agreement_torch": 98.0,
        "params": 5_000_000,
        "macs": 700_000_000,
        "bops": 9e10,
        "integer_products": 40,
        "float_products": 2,
        "latency": {runtime: times},
        "speedup": {runtime: dict.fromkeys(times, factor)},
    }


def layer_entries(blocks: int) -> list[dict[str, Any]]:
    kinds = ("qkv", "qk^T", "av", "proj", "fc1", "fc2")
    inner = [
        {
            "name": f"blocks.{block}.{kind}",
            "block": f"blocks.{block}",
            "kind": kind,
            "weighted": "^" not in kind and kind != "av",
            "macs_before": 1000,
            "macs": 0 if block == 1 else 1000 - 50 * block,
            "bits": [8, 8] if kind != "av" else [32, 32],
            "zeros": 50.0 if kind in ("qkv", "fc1") else 0.0,
            **({"output_error": 0.02 * block} if kind in ("proj", "fc2") and block != 1 else {}),
        }
        for block in range(blocks)
        for kind in kinds
    ]
    edge = {"block": "", "weighted": True, "macs_before": 500, "macs": 500, "bits": [32, 8], "zeros": 0.0}
    first = edge | {"name": "patch_embed.proj", "kind": "patch_embed", "output_error": 0.01}
    return [first, *inner, edge | {"name": "head", "kind": "head", "output_error": 0.3}]


def full_report(name: str = "vit_tiny_example", blocks: int = 12) -> dict[str, Any]:
    files = [file_entry("onnx", "onnxruntime", 67.0, 2.5), file_entry("openvino", "openvino", 67.2, 3.5)]
    latency = {runtime: {"1": timing(20), "8": timing(150)} for runtime in ("onnxruntime", "openvino")}
    left = [{"name": f"blocks.{i}.attn", "reason": "attention products: left in floating point"} for i in range(blocks)]
    stage = {
        "seconds": 4000.0,
        "peak_rss_mb": 2900.0,
        "agreement": 91.0,
        "images_per_second": 42.0,
        "step_seconds": {"images": 0.1, "forward": 0.4, "losses": 0.4, "backward": 1.0, "update": 0.1},
        "epochs": 2.0,
        "layers_done": ["a", "b"],
        "layers_left": left,
        "invariants": [{"name": "2:4 along K", "holds": True, "detail": ""}],
    }
    goals = [{"key": "max_drop", "limit": 2.0, "measured": 1.0, "met": True, "text": "top1 68.00 -> 67.00"}]
    attempt = {"number": 1, "reason": "as the recipe says", "status": "missed", "goals": []}
    attempt["artifacts"] = [file_entry("onnx", "onnxruntime", 64.0, 3.0)]
    return {
        "schema": 1,
        "name": name,
        "status": "met",
        "goals": goals,
        "metric": "top1",
        "judged": {"format": "openvino", "batch": 8},
        "recipe_hash": "00",
        "environment": {"python": "3.12", "cpu": "a processor", "packages": {"torch": "2.11", "timm": "1.0"}},
        "data": {"fingerprint": "f" * 64, "train_images": 1000, "val_images": 500, "skipped": []},
        "baseline": {"top1": 68.0, "params": 5_500_000, "macs": 10**9, "bytes": 22 * 10**6, "bops": 10**12}
        | {"latency": latency},
        "stages": [
            stage | {"name": "prune", "top1": 66.0, "steps": 500},
            stage | {"name": "quant_aware", "top1": 67.1, "steps": 0},
        ],
        "artifacts": files,
        "attempts": [
            attempt,
            attempt | {"number": 2, "status": "met", "reason": "Prune: two layers left dense", "artifacts": files},
        ],
        "kept": 2,
        "checks": [{"name": "checksums", "holds": True, "detail": "no file has changed"}],
        "layers": {"images": 32, "entries": layer_entries(blocks)},
    }


def events() -> list[dict[str, Any]]:
    return [
        {
            "event": "train_step",
            "stage": stage,
            "step": step,
            "loss": 3.0 / step,
            "losses": {"soft": 1.0 / step, "hard": 2.0 / step},
            "values": {"mask_flip_rate": 0.1 / step, "mask_flip_rate.blocks.0.qkv": 0.2 / step},
        }
        for stage in ("Prune", "QuantAware")
        for step in range(10, 200, 10)
    ]


VOID = ("meta", "br", "rect", "circle", "path")


def check_whole(page: str) -> None:
    """Every tag is closed, and nothing is asked for."""
    open_tags: list[str] = []

    class Check(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in VOID:
                open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            if tag not in VOID:
                assert open_tags.pop() == tag

    Check().feed(page)
    assert open_tags == []
    assert not re.search(r"https?://|\bsrc=|@import|url\(|<script|<link", page)


PROBE = """
<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="page" style="width:WIDTHpx;height:900px;border:0" srcdoc="SOURCE"></iframe><script>
window.onload = () => {
  const inner = document.getElementById("page"), view = inner.contentWindow, page = inner.contentDocument;
  const root = page.documentElement, box = item => item.getBoundingClientRect();
  const figures = [...page.querySelectorAll("figure")].map(figure => {
    const area = box(figure.querySelector("svg"));
    const drawn = [...figure.querySelectorAll("svg polyline, svg rect, svg circle, svg path:not(.grid):not(.axis)")];
    const words = [...figure.querySelectorAll("figure > svg text")].map(box);
    return {
      name: figure.querySelector("b").textContent, width: area.width, height: area.height,
      marks: drawn.filter(item => { const b = box(item); return b.width + b.height > 1; }).length,
      outside: words.filter(b => b.left < area.left - 2 || b.right > area.right + 2).length,
    };
  });
  const result = {
    width: root.scrollWidth, view: view.innerWidth, figures,
    requests: view.performance.getEntriesByType("resource").map(item => item.name),
    bars: [...page.querySelectorAll(".pair i")].map(item => box(item).width),
    colour: view.getComputedStyle(page.body).backgroundColor, tables: page.querySelectorAll("table").length,
  };
  document.title = "done";
  const out = document.createElement("pre"); out.id = "result"; out.textContent = JSON.stringify(result);
  inner.remove(); document.body.append(out);
};
</script>
"""


def look(page: str, folder: Path, width: int, *flags: str) -> tuple[dict[str, Any], str]:
    """What a headless browser makes of `page` at a width in pixels, and what it wrote to its console."""
    assert CHROMIUM is not None
    probe = folder / "probe.html"
    probe.write_text(PROBE.replace("WIDTH", str(width)).replace("SOURCE", html.escape(page)), encoding="utf-8")
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1400,1000",
        "--virtual-time-budget=10000",
        *flags,
    ]
    done = subprocess.run(
        [*command, "--dump-dom", probe.as_uri()], capture_output=True, text=True, check=False, timeout=240
    )
    assert '<pre id="result">' in done.stdout, done.stderr[-2000:]
    text = done.stdout.partition('<pre id="result">')[2].partition("</pre>")[0]
    result: dict[str, Any] = json.loads(html.unescape(text))
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return result, console
