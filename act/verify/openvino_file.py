"""Whether OpenVINO's IR is the main file, converted, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from act.backends import backends
from act.backends.openvino import check_ir
from act.export.openvino import ATTENTION, PADDED, convert
from act.run.choice import ATTENTIONS
from act.verify.rules import Broken

OPENVINO_FILE = "model.openvino.xml"


def openvino_file(main: Path, path: Path) -> str:
    """Converts `main` anew and compares operators, connections and constants with those of `path`; Broken where they
    differ. Needs OpenVINO, the detail says so without it."""
    reason = backends()["openvino"].available()
    if reason is not None:
        return f"not checked: {reason}"
    check_ir(path)
    import openvino

    found = openvino.Core().read_model(str(path))
    form = _said(path, found, ATTENTION, ATTENTIONS)
    padded = _said(path, found, PADDED, ("true", "false")) == "true"
    made, converted = convert(main, form, padded)
    theirs, ours = found.get_ordered_ops(), converted.get_ordered_ops()
    if len(theirs) != len(ours):
        raise Broken(f"{path.name}: {len(theirs)} operators; {main.name} converts to {len(ours)}")
    places = [{_name(node): place for place, node in enumerate(nodes)} for nodes in (theirs, ours)]
    for left, right in zip(theirs, ours, strict=True):
        if _described(left, places[0]) != _described(right, places[1]) or not _same_constant(left, right):
            raise Broken(f"{path.name}: {left.get_friendly_name()} is not what {main.name} converts to")
    appended = f", {made['zero tokens appended']} zero tokens appended" if padded else ""
    return f"{len(ours)} operators, attention in {form}{appended}"


def _said(path: Path, found: Any, key: list[str], allowed: Sequence[str]) -> str:
    """What the file says of its form under `key`."""
    value = str(found.get_rt_info(key).value) if found.has_rt_info(key) else "nothing"
    if value not in allowed:
        raise Broken(f"{path.name}: says {value} of its form under {'.'.join(key)}; allowed: {', '.join(allowed)}")
    return value


def _name(node: Any) -> str:
    """A node's name within its model; unlike friendly names these are never shared."""
    return str(node.get_name())


def _described(node: Any, places: dict[str, int]) -> tuple[Any, ...]:
    sources = [(places[_name(port.get_node())], port.get_index()) for port in node.input_values()]
    types = [str(port.get_element_type()) for port in node.outputs()]
    return node.get_type_name(), node.get_attributes(), types, sources


def _same_constant(left: Any, right: Any) -> bool:
    return left.get_type_name() != "Constant" or bool(np.array_equal(left.data, right.data))
