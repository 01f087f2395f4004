"""The stages: what each cost, what accuracy was left after it, what it promised, and the layers it left."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from act.folding import shorten
from act.run.page.parts import Number, called, details, duration, figure, metrics, table
from act.train.laps import PARTS

_GAINS = (("before", 2), ("after", 2), ("efficacy", 1))  # of `channel_order`, with the digits shown


def stages(report: Mapping[str, Any]) -> str:
    """What each stage bought and cost."""
    if not report["stages"]:
        return "<p>The recipe has no stage.</p>"
    names = metrics(report)
    main = names[0] if names else ""
    before = report["baseline"].get(main, 100.0 if main == "agreement" else None)
    rows = []
    for stage in report["stages"]:
        now = stage.get(main)
        change = "" if now is None or before is None else f"{now - before:+z.2f}"
        before = now if now is not None else before
        scores = [figure(stage.get(name)) for name in names]
        done, left = len(stage["layers_done"]), len(stage["layers_left"])
        steps = f"{stage['steps']:,}" if stage.get("steps") else "none"
        epochs = f"{stage['epochs']:.2f}" if "epochs" in stage else ""
        rate = f"{stage['images_per_second']:.1f}" if "images_per_second" in stage else ""
        cost = (duration(stage["seconds"]), steps, epochs, rate, f"{stage['peak_rss_mb']:,.0f} MiB")
        rows.append(
            (stage["name"], *map(Number, (*scores[:1], change, *scores[1:], f"{done} of {done + left}", *cost)))
        )
    after = [f"{called(name)} after" for name in names]
    head = ("stage", *after[:1], "change", *after[1:], "layers", "time", "steps", "epochs", "images/s", "peak memory")
    filled = [index for index in range(len(head)) if any(row[index] for row in rows)]
    chosen = [head[index] if index == 0 else Number(head[index]) for index in filled]
    return table(chosen, [[row[index] for index in filled] for row in rows]) + _steps(report)


def _steps(report: Mapping[str, Any]) -> str:
    """Where the time of a training step goes, a line per stage that trained."""
    lines = []
    for stage in report["stages"]:
        spent = stage.get("step_seconds")
        if spent:
            total = sum(spent.values())
            shares = ", ".join(f"{PARTS.get(part, part)} {100 * spent[part] / total:.0f} %" for part in spent)
            lines.append(f"<p><small>A step of {escape(stage['name'])}: {total:.2f} s, {escape(shares)}.</small></p>")
    return "".join(lines)


def features(report: Mapping[str, Any]) -> str:
    """The feature loss that each stage left by layer, and the weights made from it; '' where none were."""
    found = [stage for stage in report["stages"] if "feature_loss" in stage]
    if not any("layer_weights" in stage for stage in found):
        return ""
    head: list[str] = ["layer"]
    columns: list[tuple[Mapping[str, float], str]] = []
    for stage in found:
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


def reordered(report: Mapping[str, Any]) -> str:
    """What reordering channels won for the masks of each layer; '' where nothing was reordered."""
    parts = []
    for stage in report["stages"]:
        if "channel_order" not in stage:
            continue
        order = stage["channel_order"]
        total = order["all"]
        rows = [
            (name, *(Number(f"{gain[key]:.{digits}f}") for key, digits in _GAINS))
            for name, gain in order["layers"].items()
        ]
        head = ("layer", *map(Number, ("% kept in the old order", "% kept in the new", "efficacy, %")))
        parts.append(
            f"<p>Channels were reordered for {len(rows)} layers before masks were chosen, which leaves the dense "
            f"model's function as it was. Masks keep {total['after']:.2f} % of the scores that fit at all, "
            f"{total['before']:.2f} % in the old order: {total['efficacy']:.1f} % of that gap is won (efficacy).</p>"
            f"{details(f'All {len(rows)} layers', table(head, rows))}"
        )
    return "".join(parts)


def promises(report: Mapping[str, Any]) -> str:
    """The invariants of each stage, and the checks of the finished files."""
    rows = [
        (stage["name"], item["name"], "holds" if item["holds"] else "BROKEN", item.get("detail", ""))
        for stage in [*report["stages"], {"name": "exported file", "invariants": report.get("checks", [])}]
        for item in stage["invariants"]
    ]
    return table(("stage", "promise", "", ""), rows) if rows else ""


def left(report: Mapping[str, Any]) -> str:
    """The layers that a stage left, one line for each of its reasons."""
    parts = []
    for stage in report["stages"]:
        reasons: dict[str, list[str]] = {}
        for item in stage["layers_left"]:
            reasons.setdefault(item["reason"], []).append(item["name"])
        lines = "".join(
            f"<li>{f'{len(names)} layers, ' if len(names) > 1 else ''}<code>{escape(shorten(names))}</code>: "
            f"{escape(reason)}</li>"
            for reason, names in reasons.items()
        )
        if lines:
            parts.append(f"<h3>{escape(stage['name'])}</h3><ul>{lines}</ul>")
    return "".join(parts)
