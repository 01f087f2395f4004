"""Hydra's part: groups from `configs/` named by a recipe's defaults list, and `key=value` overrides.

Only Hydra's compose API and its override grammar are used; nothing is ever instantiated.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from act.recipe.coerce import Problems, near, short, shown
from act.recipe.guard import DROPPED, plain, usable_key
from act.recipe.paths import configs_dir

Tree = dict[str, Any]
SELF = "_self_"


def groups() -> dict[str, list[str]]:
    """The option names of each config group."""
    folders = sorted(path for path in configs_dir().glob("*") if path.is_dir())
    return {folder.name: sorted(option.stem for option in folder.glob("*.yaml")) for folder in folders}


class Overrides:
    """`key=value`, `Group=option` and `~Section` words of a command line, in Hydra's grammar."""

    def __init__(self, words: Sequence[str], section: Callable[[str], str]) -> None:
        self.values: list[tuple[list[str], Any]] = []
        self.choices: list[tuple[str, str]] = []
        self.removed: list[str] = []
        self.problems: list[str] = []
        parser = OverridesParser.create()
        known = groups()
        for word in words:
            try:
                self._add(word, parser.parse_override(word), known, section)
            except (HydraException, ValueError, RecursionError) as error:  # too long a number, too deep a list
                reason = str(error).splitlines()[0]
                self.problems.append(
                    f"command line: {short(word)}: not key=value ({short(reason)}); quote unusual text: 'key=\"...\"'"
                )

    def _add(self, word: str, override: Override, known: dict[str, list[str]], section: Callable[[str], str]) -> None:
        key, problems = override.key_or_group.replace("/", "."), Problems("command line")
        first, _, rest = key.partition(".")
        parts = [section(first), *rest.split(".")] if rest else [section(first)]
        key = ".".join(parts)
        if override.is_delete():
            if rest or override.value() is not None:
                problems.add(key, "only a whole section can be removed, as in ~Prune")
            else:
                self.removed.append(key)
        elif override.is_sweep_override():
            problems.add(key, f"{shown(word)} is a sweep; give one value")
        elif override.package is not None or not all(parts):
            problems.add(word, "not a dotted key; write Section.key=value")
        elif all([usable_key(part, key, problems) for part in parts]):
            value = plain(_unquoted(override.value()), key, problems)
            if value is DROPPED:
                pass
            elif key in known and isinstance(value, str):
                if value in known[key]:
                    self.choices.append((key, value))
                else:
                    options = ", ".join(known[key])
                    problems.add(
                        key, f"no group {value!r} in configs/{key}{near(value, known[key])}; allowed: {options}"
                    )
            else:
                self.values.append((parts, value))
        self.problems += problems.found

    @property
    def keys(self) -> list[str]:
        """The dotted keys given by value."""
        return [".".join(parts) for parts, _ in self.values]

    def apply(self, tree: Tree, problems: Problems) -> None:
        """Set the values in `tree`; a mapping is merged into the one that stands there."""
        for parts, value in self.values:
            set_value(tree, parts, value, problems)


def compose_groups(body: Tree, defaults: Any, overrides: Overrides, problems: Problems) -> Tree:
    """`body` merged with the groups that `defaults` and the overrides name, in the order of the defaults list."""
    entries = _entries(defaults, problems)
    body = {key: value for key, value in body.items() if key not in overrides.removed}
    entries = [entry for entry in entries if entry == SELF or entry[0] not in overrides.removed]
    for group, option in overrides.choices:
        # In place where the recipe chose another option; else last, since the command line has the last word.
        chosen = [entry for entry in entries if entry != SELF and entry[0] == group]
        if chosen:
            entries[entries.index(chosen[0])] = (group, option)
        else:
            entries.append((group, option))
    if all(entry == SELF for entry in entries):
        return body
    primary = {"defaults": [entry if entry == SELF else {entry[0]: entry[1]} for entry in entries], **body}
    with tempfile.TemporaryDirectory() as folder:
        # JSON is YAML in which every text is quoted, so no value changes its type on the way.
        Path(folder, "recipe.yaml").write_text(json.dumps(primary), encoding="utf-8")
        # Hydra's quotes are those of JSON but for escapes of characters beyond ASCII, which a path may have.
        search = f"hydra.searchpath=[{json.dumps('file://' + str(configs_dir()), ensure_ascii=False)}]"
        try:
            with initialize_config_dir(config_dir=folder, version_base="1.3"):
                merged = OmegaConf.to_container(compose("recipe", overrides=[search]), resolve=False)
        except Exception as error:  # Hydra and OmegaConf raise many types on values that cannot be merged
            problems.add("defaults", f"cannot be merged: {str(error).splitlines()[0]}")
            return body
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def _entries(defaults: Any, problems: Problems) -> list[Any]:
    known = groups()
    if defaults is None:
        return [SELF]
    if not isinstance(defaults, list):
        problems.add("defaults", f"expected a list such as [{{Prune: 2to4}}, _self_], got {shown(defaults)}")
        return [SELF]
    entries: list[Any] = []
    for item in defaults:
        if item == SELF:
            entries.append(SELF)
            continue
        pairs = list(item.items()) if isinstance(item, dict) else []
        if len(pairs) != 1 or not isinstance(pairs[0][1], str):
            problems.add(
                "defaults", f"{shown(item)}: each entry is `Group: option` or _self_; groups: {', '.join(known)}"
            )
            continue
        group, option = pairs[0]
        if group not in known:
            problems.add("defaults", f"no group {group!r}{near(group, known)}; groups: {', '.join(known)}")
        elif option not in known[group]:
            options = ", ".join(known[group])
            problems.add("defaults", f"no option {option!r} in {group}{near(option, known[group])}; allowed: {options}")
        elif any(entry != SELF and entry[0] == group for entry in entries):
            problems.add("defaults", f"group {group!r} is named twice; keep one option")
        else:
            entries.append((group, option))
    if entries.count(SELF) > 1:
        problems.add("defaults", "_self_ is named twice")
    return entries if SELF in entries else [*entries, SELF]


def set_value(tree: Tree, parts: list[str], value: Any, problems: Problems) -> None:
    node = tree
    for index, part in enumerate(parts[:-1]):
        inner = node.get(part)
        if inner is None:
            inner = node[part] = {}
        if not isinstance(inner, dict):
            problems.add(".".join(parts), f"{'.'.join(parts[: index + 1])} is {shown(inner)}, which has no keys")
            return
        node = inner
    old = node.get(parts[-1])
    if isinstance(old, dict) and isinstance(value, dict):
        for name, inner in value.items():
            set_value(old, [name], inner, problems)
    else:
        node[parts[-1]] = value


def _unquoted(value: Any) -> Any:
    """Hydra's parsed value with its quoted strings as plain text."""
    if isinstance(value, dict):
        return {str(_unquoted(key)): _unquoted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_unquoted(inner) for inner in value]
    return getattr(value, "text", value)
