"""What came out, first of all: one sentence, the goals, and the original beside the compressed model."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from act.run.page.parts import Number, called, figure, megabytes, metrics, milliseconds, table

CHIPS = {"met": "✓ every goal is met", "missed": "✗ not every goal is met; the best result is kept"}
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT"}


def judged_file(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entry of the exported file that the goals are for, else the first; empty without files."""
    files = report["artifacts"]
    wanted = report.get("judged", {}).get("format")
    return next((item for item in files if item["format"] == wanted), files[0] if files else {})


def timing(report: Mapping[str, Any], item: Mapping[str, Any]) -> tuple[str, str, float, float, float] | None:
    """(runtime, batch, ms before, ms after, speed-up) of a file: at the target's batch if it was timed there, else at
    the smallest. None where it was not timed."""
    for backend, batches in item.get("latency", {}).items():
        wanted = str(report.get("judged", {}).get("batch"))
        batch = wanted if wanted in batches else min(batches, key=int)
        before = report["baseline"]["latency"][backend][batch]["median_ms"]
        return backend, batch, before, batches[batch]["median_ms"], item["speedup"][backend][batch]
    return None


def verdict(report: Mapping[str, Any]) -> str:
    """One sentence with accuracy, size and speed before and after."""
    before, after = report["baseline"], judged_file(report)
    if not after:
        return "No file was exported."
    said = []
    names = metrics(report)
    if names:
        name = names[0]
        new, old = after.get(name), before.get(name)
        if new is not None and old is not None:
            said.append(f"{called(name)} {old:.2f} → {new:.2f} ({new - old:+z.2f})")
        elif new is not None:
            said.append(f"{called(name)} {'with the original ' if name == 'agreement' else ''}{new:.2f}")
    ratio = before["bytes"] / after["bytes"]
    said.append(f"{ratio:.2f}x smaller ({megabytes(before['bytes'])} → {megabytes(after['bytes'])})")
    timed = timing(report, after)
    if timed is not None:
        backend, batch, old, new, factor = timed
        runtime = RUNTIMES.get(backend, backend)
        said.append(f"{factor:.2f}x as fast ({old:.1f} → {new:.1f} ms, {runtime}, batch {batch})")
    text = ", ".join(said)
    return text[0].upper() + text[1:] + ("." if timed is not None else "; not timed.")


def header(report: Mapping[str, Any]) -> str:
    """Name, verdict and goals."""
    status = str(report["status"])
    chip = f'<span class="chip {status}">{escape(CHIPS[status])}</span>' if status in CHIPS else ""
    goals = "".join(
        f'<li><b class="{"met" if goal["met"] else "missed"}">{"✓ met" if goal["met"] else "✗ missed"}</b> '
        f"{escape(str(goal['text']))}</li>"
        for goal in report.get("goals", [])
    )
    remarks = "".join(
        f"<p class=soft>{escape(text)}.</p>" for stage in report["stages"] for text in stage.get("remarks", [])
    )
    return (
        f"<header><h1>{escape(str(report.get('name', 'run')))}</h1>"
        f'<p class="verdict">{escape(verdict(report))}</p>'
        f"{chip or '<span class=soft>The recipe sets no goal.</span>'}"
        f"{f'<ul class=goals>{goals}</ul>' if goals else ''}{remarks}</header>"
    )


def comparison(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows (what, original, compressed, change) of the file that goals go by."""
    before: Mapping[str, Any] = report["baseline"]
    after = judged_file(report)
    rows = []
    for name in metrics(report):
        old, new = before.get(name), after.get(name)
        change = "" if old is None or new is None else f"{new - old:+z.2f}"
        rows.append((called(name), figure(old), figure(new), change))
    if "bytes" in after:
        rows.append(
            ("bytes", f"{before['bytes']:,}", f"{after['bytes']:,}", f"{before['bytes'] / after['bytes']:.2f}x smaller")
        )
    for key, what in (("params", "parameters (M)"), ("macs", "multiply-accumulates (M)")):
        # Scales of quantisers are parameters, too; mostly so few that they are no news.
        if key in before and key in after and abs(after[key] / before[key] - 1) > 5e-4:
            percent = 100 * (after[key] / before[key] - 1)
            change = f"{abs(percent):.1f} % {'more' if percent > 0 else 'fewer'}"
            rows.append((what, f"{before[key] / 1e6:,.2f}", f"{after[key] / 1e6:,.2f}", change))
    if "bops" in before and "bops" in after:
        change = f"{before['bops'] / after['bops']:.2f}x fewer"
        rows.append(("bit operations (G)", f"{before['bops'] / 1e9:,.1f}", f"{after['bops'] / 1e9:,.1f}", change))
    if "integer_products" in after:
        both = after["integer_products"] + after["float_products"]
        rows.append(("matrix products on integers", "", f"{after['integer_products']} of {both}", ""))
    for backend, batches in after.get("latency", {}).items():
        for batch, found in batches.items():
            old = before.get("latency", {}).get(backend, {}).get(batch, {}).get("median_ms")
            factor = after.get("speedup", {}).get(backend, {}).get(batch)
            what = f"latency, {backend}, batch {batch}"
            faster = "" if factor is None else f"{factor:.2f}x as fast"
            rows.append((what, milliseconds(old), milliseconds(found["median_ms"]), faster))
    return rows


def before_after(report: Mapping[str, Any]) -> str:
    """The three figures that matter as bars, all of them as a table."""
    base = report["baseline"]
    rows = [(name, Number(old), Number(new), Number(change)) for name, old, new, change in comparison(report)]
    counts = f"{base['params']:,} parameters, {base['macs'] / 1e6:,.0f} million multiply-accumulates per image"
    files = "".join(
        f"<br>{escape(item['path'])}, SHA-256 {escape(item['sha256'])}"
        for entry in report.get("artifacts", [])
        for item in entry.get("files", [entry])
    )
    return (
        _tiles(report)
        + table(("", Number("original"), Number("compressed"), Number("change")), rows)
        + f"<p><small>The original has {counts}. Accuracies in percent, measured on the exported file; latencies are "
        f"medians, measured in turns with the original.{files}</small></p>"
    )


def _tiles(report: Mapping[str, Any]) -> str:
    before, after = report["baseline"], judged_file(report)
    if not after:
        return ""
    tiles = []
    names = metrics(report)
    if names and names[0] in after:
        name = names[0]
        # The original agrees with itself on every image.
        old, new = float(before.get(name, 100.0)), float(after[name])
        tiles.append(_tile(f"{new - old:+z.2f}", called(name), old, new, figure(old), figure(new)))
    old, new = before["bytes"], after["bytes"]
    tiles.append(_tile(f"{old / new:.2f}x", "smaller", old, new, megabytes(old), megabytes(new)))
    timed = timing(report, after)
    if timed is not None:
        backend, batch, old, new, factor = timed
        label = f"as fast, {RUNTIMES.get(backend, backend)}, batch {batch}"
        tiles.append(_tile(f"{factor:.2f}x", label, old, new, milliseconds(old), milliseconds(new)))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _tile(headline: str, label: str, old: float, new: float, old_text: str, new_text: str) -> str:
    longest = max(old, new, 1e-12)

    def bar(css: str, value: float) -> str:
        # An error that fell below nothing has no bar, and none reaches beyond its place.
        return f'<span><i class="{css}" style="width:{100 * max(value, 0.0) / longest:.1f}%"></i></span>'

    return (
        f'<div class="tile"><b>{escape(headline)}</b><span class="soft">{escape(label)}</span><div class="pair">'
        f"<span>original</span>{bar('old', old)}<span>{escape(old_text)}</span>"
        f"<span>compressed</span>{bar('new', new)}<span>{escape(new_text)}</span></div></div>"
    )
