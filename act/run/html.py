"""report.html: the report for people, one self-contained page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from act.run.chart import loss_chart, value_chart

STYLE = """
:root{color-scheme:light dark;--ink:#1c2127;--soft:#5f6b7a;--line:#d9dee4;--card:#fff;--page:#f4f6f8;--good:#137333;
--bad:#b3261e;--mark:#1a5fb4}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#9aa5b1;--line:#333b44;--card:#1c2127;--page:#12161a;
--good:#6fcf87;--bad:#f28b82;--mark:#8ab4f8}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1rem}
section,header{background:var(--card);border:1px solid var(--line);border-radius:.6rem;
padding:1rem 1.2rem;margin:1rem 0}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:0 0 .6rem}
.verdict{font-size:1.15rem;font-weight:600;margin:.4rem 0 0}.met{color:var(--good)}.missed{color:var(--bad)}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.35rem .8rem .35rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:500;font-size:.9rem}.number{text-align:right}td.number{font-variant-numeric:tabular-nums}
pre{overflow-x:auto;font-size:.85rem;margin:0}small,.soft{color:var(--soft)}
svg{width:100%;height:auto;display:block}details summary{cursor:pointer;color:var(--mark)}
"""
VERDICTS = {
    "met": "Every goal is met.",
    "missed": "Not every goal is met; the best result is kept.",
    "no_target": "Done; the recipe sets no goal.",
}


class Number(str):
    """Text of a table cell that is set as a figure."""


def render(report: Mapping[str, Any], recipe_text: str, events: Sequence[Mapping[str, Any]]) -> str:
    """The page for a report (schema 1), the resolved recipe and the run's events. Every value is escaped."""
    parts = [
        _verdict(report),
        _section("Attempts", _attempts(report)),
        _section("Before and after", _before_after(report)),
        _section("Exported files", _exported(report)),
        _section("Not run here", _commands(report)),
        _section("Stages", _stages(report)),
        _section("Distilled layers", _features(report)),
        _section("What must hold", _invariants(report)),
        _section("Layers left as they were", _left(report)),
        _section("Training", loss_chart(events) + value_chart(events)),
        _section("Recipe", f"<pre>{escape(recipe_text)}</pre>"),
        _section("Environment", _mapping(report.get("environment", {}))),
    ]
    title = escape(str(report.get("name", "run")))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}: vitcompress report</title><style>{STYLE}</style></head><body><main>"
        f"{''.join(parts)}</main></body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table of escaped text; cells that are `Number` are set to the right."""

    def cell(value: str) -> str:
        return f"<td{' class=number' if isinstance(value, Number) else ''}>{escape(value)}</td>"

    body = "".join(f"<tr>{''.join(cell(value) for value in row)}</tr>" for row in rows)
    names = "".join(f"<th{' class=number' if isinstance(name, Number) else ''}>{escape(name)}</th>" for name in head)
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def comparison(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows (what, original, compressed, change) of the report's first exported file."""
    before: Mapping[str, Any] = report["baseline"]
    after: Mapping[str, Any] = next(iter(report["artifacts"]), {})
    rows = []
    for name in _metrics(before, after):
        old, new = before.get(name), after.get(name)
        change = "" if old is None or new is None else f"{new - old:+.2f}"
        rows.append((name, _figure(old), _figure(new), change))
    if "bytes" in after:
        rows.append(
            ("bytes", f"{before['bytes']:,}", f"{after['bytes']:,}", f"{before['bytes'] / after['bytes']:.2f}x smaller")
        )
    for key, what in (("params", "parameters (M)"), ("macs", "multiply-accumulates (M)")):
        if key in before and key in after and before[key] != after[key]:
            change = f"{100 * (1 - after[key] / before[key]):.1f} % fewer"
            rows.append((what, f"{before[key] / 1e6:,.2f}", f"{after[key] / 1e6:,.2f}", change))
    if "bops" in before and "bops" in after:
        change = f"{before['bops'] / after['bops']:.2f}x fewer"
        rows.append(("bit operations (G)", f"{before['bops'] / 1e9:,.1f}", f"{after['bops'] / 1e9:,.1f}", change))
    if "integer_products" in after:
        both = after["integer_products"] + after["float_products"]
        rows.append(("matrix products on integers", "", f"{after['integer_products']} of {both}", ""))
    for backend, batches in after.get("latency", {}).items():
        for batch, timing in batches.items():
            old = before.get("latency", {}).get(backend, {}).get(batch, {}).get("median_ms")
            factor = after.get("speedup", {}).get(backend, {}).get(batch)
            what = f"latency, {backend}, batch {batch}"
            rows.append((what, _ms(old), _ms(timing["median_ms"]), "" if factor is None else f"{factor:.2f}x as fast"))
    return rows


def _metrics(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    other = {"params", "macs", "bytes", "images", "max_abs_diff", "seconds", "peak_rss_mb", "steps", "agreement_torch"}
    other |= {"integer_products", "float_products", "bops"}
    found = [key for key, value in {**before, **after}.items() if isinstance(value, int | float) and key not in other]
    return sorted(found, key=lambda name: (name != "top1", name))


def _attempts(report: Mapping[str, Any]) -> str:
    """What the run tried to meet its goals; nothing where the first attempt was the only one."""
    rows = [
        (
            f"{attempt['number']}{' (kept)' if attempt['number'] == report['kept'] else ''}",
            str(attempt["reason"]),
            str(attempt["status"]),
            "; ".join(f"{goal['text']}: {'met' if goal['met'] else 'missed'}" for goal in attempt["goals"]),
        )
        for attempt in report.get("attempts", [])
    ]
    return table(("attempt", "what was changed", "outcome", "goals"), rows) if rows else ""


def _verdict(report: Mapping[str, Any]) -> str:
    status = str(report["status"])
    goals = "".join(
        f'<li class="{"met" if goal["met"] else "missed"}">{"met" if goal["met"] else "missed"}: '
        f"{escape(str(goal['text']))}</li>"
        for goal in report.get("goals", [])
    )
    css = status if status in ("met", "missed") else "soft"
    return (
        f"<header><h1>{escape(str(report.get('name', 'run')))}</h1>"
        f'<p class="verdict {css}">{escape(VERDICTS.get(status, status))}</p>'
        f"{f'<ul>{goals}</ul>' if goals else ''}</header>"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _before_after(report: Mapping[str, Any]) -> str:
    base = report["baseline"]
    rows = [(name, Number(old), Number(new), Number(change)) for name, old, new, change in comparison(report)]
    counts = f"{base['params']:,} parameters, {base['macs'] / 1e6:,.0f} million multiply-accumulates per image"
    files = "".join(
        f"<br>{escape(item['path'])}, SHA-256 {escape(item['sha256'])}"
        for entry in report.get("artifacts", [])
        for item in entry.get("files", [entry])
    )
    return (
        table(("", Number("original"), Number("compressed"), Number("change")), rows)
        + f"<p><small>The original has {counts}. Accuracies in percent, measured on the exported file; latencies are "
        f"medians, measured in turns with the original.{files}</small></p>"
    )


def _exported(report: Mapping[str, Any]) -> str:
    """Every format in its own runtime, '' when the main file is the only one."""
    rows = []
    for item in report["artifacts"]:
        for backend, batches in item.get("latency", {"": {"": {}}}).items():
            for batch, timing in batches.items():
                factor = item.get("speedup", {}).get(backend, {}).get(batch)
                scores = (_figure(item.get(name)) for name in ("top1", "agreement", "agreement_torch"))
                times = (_ms(timing.get("median_ms")), "" if factor is None else f"{factor:.2f}x")
                rows.append(
                    (
                        item["format"],
                        *map(Number, (f"{item['bytes']:,}", *scores)),
                        backend,
                        *map(Number, (batch, *times)),
                    )
                )
    figures = map(Number, ("bytes", "top1", "agreement", "agreement with torch"))
    head = ("format", *figures, "runtime", *map(Number, ("batch", "median", "speed-up")))
    return table(head, rows) + _forms(report) if len(report["artifacts"]) > 1 else ""


def _forms(report: Mapping[str, Any]) -> str:
    """What was rewritten in each file for one runtime, and why it has the form that it has."""
    lines = []
    for item in report["artifacts"]:
        if "rewritten" not in item:
            continue
        times = "; ".join(f"{form} {_ms(median)}" for form, median in item.get("form_ms", {}).items())
        done = ", ".join(f"{count} {what}" for what, count in item["rewritten"].items() if count)
        measured = f" (measured: {times})" if times else ""
        left = f"; no tokens appended: {item['not_padded']}" if "not_padded" in item else ""
        text = f"{item['format']}: attention in {item['attention']}{measured}; {done}{left}"
        lines.append(f"<li>{escape(text)}</li>")
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _commands(report: Mapping[str, Any]) -> str:
    """For each format whose own runtime was not at hand: what was done instead, and the commands to run it."""
    parts = []
    for item in report["artifacts"]:
        if "commands" in item:
            lines = [f"# {item['format']} {version}\n{command}" for version, command in item["commands"].items()]
            remarks = "".join(f"<li>{escape(str(text))}</li>" for text in item.get("remarks", []))
            parts.append(
                f"<p>{escape(item['path'])}: {escape(str(item.get('executed', '')))}.</p>"
                f"{f'<ul>{remarks}</ul>' if remarks else ''}<pre>{escape(chr(10).join(lines))}</pre>"
            )
    return "".join(parts)


def _stages(report: Mapping[str, Any]) -> str:
    names = _metrics({}, {key: value for stage in report["stages"] for key, value in stage.items()})
    rows = []
    for stage in report["stages"]:
        figures = [Number(_figure(stage.get(name))) for name in names]
        done, left = len(stage["layers_done"]), len(stage["layers_left"])
        cost = (Number(f"{stage['seconds']:.0f}"), Number(f"{stage['peak_rss_mb']:.0f}"))
        rows.append((stage["name"], *figures, Number(f"{done} of {done + left}"), *cost))
    head = ("stage", *map(Number, (*names, "layers", "seconds", "peak memory (MiB)")))
    return table(head, rows) if rows else "<p>The recipe has no stage.</p>"


def _features(report: Mapping[str, Any]) -> str:
    """The feature loss that each stage left by layer, and the weights made from it; '' where none were."""
    stages = [stage for stage in report["stages"] if "feature_loss" in stage]
    if not any("layer_weights" in stage for stage in stages):
        return ""
    head: list[str] = ["layer"]
    columns: list[tuple[Mapping[str, float], str]] = []
    for stage in stages:
        for key, title, form in (
            ("layer_weights", "weight in", ".2f"),
            ("feature_loss", "loss left after", ".4g"),
        ):
            if key in stage:
                head.append(Number(f"{title} {stage['name']}"))
                columns.append((stage[key], form))
    layers = dict.fromkeys(layer for values, _ in columns for layer in values)
    rows = [
        (layer, *(Number(format(values[layer], form) if layer in values else "") for values, form in columns))
        for layer in layers
    ]
    return table(head, rows) + (
        "<p><small>Loss: mean over a stage's last steps, without weights. Weight: the loss that the stage before left, "
        "over the mean of all layers.</small></p>"
    )


def _invariants(report: Mapping[str, Any]) -> str:
    rows = [
        (stage["name"], item["name"], "holds" if item["holds"] else "BROKEN", item.get("detail", ""))
        for stage in [*report["stages"], {"name": "exported file", "invariants": report.get("checks", [])}]
        for item in stage["invariants"]
    ]
    return table(("stage", "promise", "", ""), rows) if rows else ""


def _left(report: Mapping[str, Any]) -> str:
    rows = [
        (stage["name"], item["name"], item["reason"]) for stage in report["stages"] for item in stage["layers_left"]
    ]
    return table(("stage", "layer", "reason"), rows) if rows else ""


def _mapping(values: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {item}" for key, item in value.items())
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    return table(("", ""), [(str(key), text(value)) for key, value in values.items()])


def _figure(value: Any) -> str:
    return "" if value is None else f"{value:.2f}"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} ms"
