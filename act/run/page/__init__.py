"""report.html: the report for people, one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from act.run.page.curves import loss_chart, trained, value_chart
from act.run.page.document import document
from act.run.page.files import attempts, commands, exported
from act.run.page.layers import layers
from act.run.page.parts import details, mapping, section
from act.run.page.scatter import scatter
from act.run.page.stages import features, left, promises, reordered, stages
from act.run.page.summary import before_after, header


def render(report: Mapping[str, Any], recipe_text: str, events: Sequence[Mapping[str, Any]]) -> str:
    """The page for a report (schema 1), the resolved recipe and the run's events. Every value is escaped."""
    steps = trained(events, report)
    curves = loss_chart(steps) + value_chart(steps)
    pictures = scatter(report)
    parts = [
        header(report),
        section("Before and after", before_after(report)),
        section("Accuracy and latency", f'<div class="figures">{pictures}</div>' if pictures else ""),
        section("Stages", stages(report)),
        section("Layers", layers(report)),
        section("Layers left as they were", left(report)),
        section("Training", f'<div class="figures">{curves}</div>' if curves else ""),
        section("Distilled layers", features(report)),
        section("Channel order", reordered(report)),
        section("Attempts", attempts(report)),
        section("Exported files", exported(report)),
        section("Not run here", commands(report)),
        section("What must hold", promises(report)),
        section("Recipe", details("The whole recipe, every default written out", f"<pre>{escape(recipe_text)}</pre>")),
        section("Environment", mapping(report.get("environment", {}))),
    ]
    return document(f"{report.get('name', 'run')}: vitcompress report", parts)
