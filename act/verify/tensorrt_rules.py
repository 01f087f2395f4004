"""What a rule of the TensorRT linter is, and the registry of rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx

from act.export.onnx_graph import Graph

ERROR, WARNING = "error", "warning"
Findings = Iterator[tuple[str, str]]  # node name (or another place in the file), and one line


@dataclass(frozen=True)
class Finding:
    """One thing that a rule found. `level`: error (refused, or not what was claimed) or warning (slower)."""

    level: str
    rule: str
    node: str
    text: str


@dataclass(frozen=True)
class Subject:
    """What rules look at: the graph, and the N:M pattern by name of each constant that is claimed to be sparse.

    `lost` are claims that no weight of the file answers to.
    """

    graph: Graph
    sparse: Mapping[str, str] = field(default_factory=dict)
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """`check` yields where and how the rule is broken."""

    name: str
    level: str
    check: Callable[[Subject], Findings]


RULES: dict[str, Rule] = {}


def rule(name: str, level: str) -> Callable[[Callable[[Subject], Findings]], Callable[[Subject], Findings]]:
    """Register a function as the rule `name`."""

    def register(check: Callable[[Subject], Findings]) -> Callable[[Subject], Findings]:
        RULES[name] = Rule(name, level, check)
        return check

    return register


def label(node: onnx.NodeProto) -> str:
    """How a node is called in findings."""
    return str(node.name or node.output[0])


def type_name(elem_type: int | None) -> str:
    """`float16` for 10, and so on."""
    if elem_type == onnx.TensorProto.FLOAT:
        return "float32"
    return "unknown" if not elem_type else str(onnx.TensorProto.DataType.Name(elem_type)).lower()
