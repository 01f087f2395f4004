"""README's table of results is what the recipes record."""

from __future__ import annotations

import re
from typing import Any

import pytest
from docs_support import ROOT

from act.recipe.load import load_recipe
from act.recipe.paths import find_recipe

_ROW = re.compile(
    r"\| `(?P<recipe>\w+)` \|[^|]*\| [^|]*, (?P<images>[^|]+) \| (?P<before>[\d.]+) -> (?P<top1>[\d.]+) "
    r"\| (?P<agreement>[\d.]+) \| (?P<old>[\d.]+) MB -> (?P<new>[\d.]+) MB.*\|"
)


def rows() -> list[Any]:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Measured")[2].partition("\n## ")[0]
    found = [match.groupdict() for match in map(_ROW.fullmatch, text.splitlines()) if match]
    listed = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert [row["recipe"] for row in found] == listed, "a row of another form"
    return [pytest.param(row, id=f"{row['recipe']}, {row['images']}") for row in found]


@pytest.mark.parametrize("row", rows())
def test_readme_says_what_the_recipe_records(row: dict[str, str]) -> None:
    results = load_recipe(find_recipe(row["recipe"])).results
    if row["images"] == "Imagenette":
        files = [results["imagenette"]]
    else:
        baseline, files = results["baseline"], results["artifacts"]
        assert results["settings"] and results["model"] and results["data"]
        assert (row["before"], row["old"]) == (f"{baseline['top1']:.2f}", f"{baseline['bytes'] / 1e6:.2f}")
    figures = [(f"{file['top1']:.2f}", f"{file['agreement']:.2f}", f"{file['bytes'] / 1e6:.2f}") for file in files]
    assert (row["top1"], row["agreement"], row["new"]) in figures


def test_every_recipe_of_the_package_is_in_the_table() -> None:
    shown = {item.values[0]["recipe"] for item in rows()}
    assert shown == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
