"""Write docs/recipe-reference.md: every section and key of a recipe, from the dataclasses that read it.

    python scripts/recipe_reference.py

A key's description is the comment beside its field. What is allowed is asked of the loader: each key is given values
that hardly any key takes, and the page repeats what the error message says is allowed.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

from act.errors import InputError
from act.recipe.coerce import describe
from act.recipe.compose import groups
from act.recipe.load import SECTIONS, recipe_from_dict
from act.recipe.paths import configs_dir
from act.recipe.schema import AugmentConfig, Recipe
from act.strategies.base import Phase, Strategy, load_strategies

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipe-reference.md"
HEAD = """\
# Recipe reference

Written by `python scripts/recipe_reference.py` from the code that reads recipes; change the comments there, not this
page. `vitcompress recipes validate FILE` checks a recipe against it, `vitcompress recipes show quickstart` prints one
with comments.

A recipe is one YAML file. A strategy is switched on by naming its section; `Prune: {}` takes every default. Any key can
be changed on the command line: `Section.key=value`, a whole section removed: `~Section`. Numbers are read as in YAML
1.2 (`2e-4` is a number, `2:4` is text); `null` means not set. `defaults: [{Prune: 2to4_sparsegpt}, _self_]` takes a
section from `configs/Prune/2to4_sparsegpt.yaml`; `Prune=2to4_sparsegpt` does the same on the command line.
"""
KINDS = {
    Phase.OBJECTIVE: "how stages recover",
    Phase.STRUCTURE: "structure, the first stages",
    Phase.SPARSITY: "sparsity, after structure",
    Phase.QUANTIZATION: "quantisation, the last stage",
}
PROBES: tuple[Any, ...] = ("?", -1, -1.5, 1e15, ["?"], [])
_BEHIND = re.compile(r"  # (.*)$")


def reference() -> str:
    """The whole page."""
    parts = [HEAD, "## Top level\n", *_top_level()]
    for name, (_, cls) in SECTIONS.items():
        parts += [f"## {name}\n", _sentence(cls), *_table(name, cls)]
        if name == "data":
            parts += ["### data.augment\n", _sentence(AugmentConfig), *_table("data.augment", AugmentConfig)]
    for name, strategy in load_strategies().items():
        parts += [f"## {name}\n", *_strategy(name, strategy)]
    return "\n".join(parts).rstrip() + "\n"


def _top_level() -> list[str]:
    hints, said = get_type_hints(Recipe), comments(Recipe)
    plain = [item for item in dataclasses.fields(Recipe) if item.name in ("name", "description", "schema", "seed")]
    plain += [item for item in dataclasses.fields(Recipe) if item.name == "results"]
    rows = [(item.name, hints[item.name], _default(item), said[item.name]) for item in plain]
    return [*_rows("", rows), "Every other key is a section.\n"]


def _strategy(name: str, cls: type[Strategy]) -> list[str]:
    stage = KINDS[cls.phase] + ("" if cls.trains else "; does not train")
    facts = [f"Place: {stage}."]
    if cls.aliases:
        facts.append(f"ACT's {', '.join(cls.aliases)} is read as this section.")
    if cls.excludes:
        facts.append(f"Excludes {', '.join(cls.excludes)}.")
    options = groups().get(name, [])
    shown = []
    for option in options:
        first = (configs_dir() / name / f"{option}.yaml").read_text(encoding="utf-8").splitlines()[0]
        shown.append(f"- `{name}={option}`: {first.removeprefix('# ')}")
    listed = [*shown, ""] if shown else []
    return [_sentence(cls.Config), " ".join(facts) + "\n", *_table(name, cls.Config), *listed]


def _table(section: str, cls: type) -> list[str]:
    hints, said = get_type_hints(cls), comments(cls)
    rows = []
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[item.name]):
            rows.append((item.name, hints[item.name], "", f"see {section}.{item.name}"))
        else:
            rows.append((item.name, hints[item.name], _default(item), said.get(item.name, "")))
    return _rows(section, rows)


def _rows(section: str, rows: list[tuple[str, Any, str, str]]) -> list[str]:
    lines = ["| key | value | default | what it is |", "|---|---|---|---|"]
    for name, kind, default, text in rows:
        limit = allowed(f"{section}.{name}" if section else name)
        # An enumeration's own description is the list of what is allowed.
        value = describe(kind) if get_origin(kind) is Literal else ": ".join(filter(None, (describe(kind), limit)))
        cells = [f"`{name}`", value, default and f"`{default}`", text.replace("None: ", "null: ")]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def comments(cls: type) -> dict[str, str]:
    """What the source says of each field: the comment lines above it and the one behind it, base classes included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        above: list[str] = []
        for line in inspect.getsource(base).splitlines():
            stripped = line.strip()
            if stripped.startswith("#"):
                above.append(stripped.removeprefix("#").strip())
                continue
            field = re.match(r"(\w+): ", stripped)
            if field is not None and field[1] in base.__annotations__:
                behind = _BEHIND.search(stripped)
                texts = [" ".join(above), behind[1] if behind else ""]
                found[field[1]] = " ".join(text for text in texts if text).rstrip(".")
            above = []
    return found


def allowed(key: str) -> str:
    """What the loader says is allowed for a dotted key; empty where it takes any value of the type."""
    for probe in PROBES:
        tree: Any = probe
        for part in reversed(key.split(".")):
            tree = {part: tree}
        for line in _problems(tree):
            where, _, what = line.removeprefix("recipe: ").partition(": ")
            if where.partition("[")[0] == key and "allowed: " in what:
                return what.partition("allowed: ")[2]
    return ""


def _problems(tree: dict[str, Any]) -> Iterator[str]:
    try:
        recipe_from_dict(tree)
    except InputError as error:
        yield from error.problems


def _default(item: dataclasses.Field[Any]) -> str:
    value = item.default if item.default is not dataclasses.MISSING else item.default_factory()  # type: ignore[misc]
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z]\w*", value):
        return value
    return json.dumps(value)


def _sentence(cls: type) -> str:
    """The first paragraph of a docstring."""
    return inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("None", "null") + "\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    print(PAGE)
