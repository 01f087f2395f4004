"""Where the time of a file goes, operator by operator, as the runtimes themselves report it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from act.backends.census import INTEGER_OPS
from act.bench.variants import Variant

RUNS = 5
INT8, MIXED, FLOAT, SHAPES = "int8", "int8/float", "float", "other"
_INTEGERS = ("int8", "uint8")
_FLOATS = ("float", "float16", "bfloat16")


@dataclass(frozen=True)
class NodeTime:
    """One node: its operator, the arithmetic it runs in, its kernel, and milliseconds per run."""

    name: str
    operator: str
    kind: str
    milliseconds: float
    kernel: str = ""


@dataclass(frozen=True)
class OperatorTime:
    """All nodes of one operator and kind: how many, milliseconds per run, share of the total in percent."""

    operator: str
    kind: str
    count: int
    milliseconds: float
    share: float


def profile(variant: Variant, images: Any, threads: int) -> list[NodeTime] | None:
    """Times of the variant's nodes on `images` [B, C, H, W], the mean of some runs; None if its backend has none."""
    profiler = _PROFILERS.get(variant.backend)
    return None if profiler is None else profiler(variant, images, threads)


def by_operator(nodes: Iterable[NodeTime]) -> list[OperatorTime]:
    """The nodes summed by operator and kind, the most expensive first."""
    sums: dict[tuple[str, str], list[float]] = {}
    for node in nodes:
        sums.setdefault((node.operator, node.kind), []).append(node.milliseconds)
    total = sum(sum(times) for times in sums.values()) or 1.0
    found = [
        OperatorTime(operator, kind, len(times), sum(times), 100 * sum(times) / total)
        for (operator, kind), times in sums.items()
    ]
    return sorted(found, key=lambda item: -item.milliseconds)


def by_kind(nodes: Iterable[NodeTime]) -> dict[str, float]:
    """Percent of the time by the arithmetic, the largest first."""
    sums: dict[str, float] = {}
    for item in by_operator(nodes):
        sums[item.kind] = sums.get(item.kind, 0.0) + item.share
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def onnxruntime_nodes(events: Iterable[Mapping[str, Any]], runs: int) -> list[NodeTime]:
    """Node times from the events of ONNX Runtime's profile of `runs` equal runs."""
    suffix = "_kernel_time"
    found: dict[str, NodeTime] = {}
    for event in events:
        name, details = str(event.get("name", "")), event.get("args", {})
        if event.get("cat") != "Node" or not name.endswith(suffix) or "op_name" not in details:
            continue
        # Nodes may share a name, or have none; their place in the graph is their own.
        key = f"{details.get('node_index', '')} {name}"
        before = found[key].milliseconds if key in found else 0.0
        spent = before + float(event["dur"]) / 1000 / runs
        found[key] = NodeTime(name.removesuffix(suffix), str(details["op_name"]), _onnx_kind(details), spent)
    return list(found.values())


def _profile_onnxruntime(variant: Variant, images: Any, threads: int) -> list[NodeTime]:
    from act.backends.onnxruntime import open_session

    with tempfile.TemporaryDirectory(prefix="vitcompress-") as folder:
        session = open_session(variant.source.path, threads, profile=Path(folder) / "profile")
        feed = {session.get_inputs()[0].name: images}
        for _ in range(RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return onnxruntime_nodes(_steady(events), RUNS - 1)


def _steady(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events after the first run, which also allocates and warms caches."""
    ends = [event["ts"] + event["dur"] for event in events if event.get("name") == "model_run"]
    return [event for event in events if not ends or event.get("ts", 0) >= ends[0]]


def _onnx_kind(details: Mapping[str, Any]) -> str:
    """int8 for integer products; else by the types that go in and come out, small constants such as scales apart."""
    if details["op_name"] in INTEGER_OPS:
        return INT8
    first = list(details.get("input_type_shape", []))[:1]
    types = {name for tensor in (*first, *details.get("output_type_shape", [])) for name in tensor}
    integer, floating = bool(types & {*_INTEGERS}), bool(types & {*_FLOATS})
    if integer and floating:
        return MIXED
    return INT8 if integer else FLOAT if floating else SHAPES


def openvino_nodes(infos: Iterable[Any]) -> list[NodeTime]:
    """Node times from what `InferRequest.get_profiling_info()` returns; fused and skipped nodes take no time."""
    return [
        NodeTime(
            str(info.node_name),
            str(info.node_type),
            _openvino_kind(str(info.exec_type)),
            info.real_time.total_seconds() * 1000,
            str(info.exec_type),
        )
        for info in infos
        if str(info.status).endswith("EXECUTED")
    ]


def _profile_openvino(variant: Variant, images: Any, threads: int) -> list[NodeTime]:
    from act.backends.openvino import compile_model

    request = compile_model(variant.source.path, threads, variant.precision, profile=True).create_infer_request()
    request.infer([images])
    runs = []
    for _ in range(RUNS - 1):
        request.infer([images])
        runs.append(openvino_nodes(request.get_profiling_info()))
    total: dict[str, NodeTime] = {}
    for node in (node for nodes in runs for node in nodes):
        before = total[node.name].milliseconds if node.name in total else 0.0
        total[node.name] = replace(node, milliseconds=before + node.milliseconds / len(runs))
    return list(total.values())


def _openvino_kind(kernel: str) -> str:
    """The arithmetic by the precision at the end of a kernel's name: brgemm_avx512_I8, jit_avx512_bf16, ref_f32."""
    precision = kernel.rpartition("_")[2].lower()
    if precision in ("i8", "u8"):
        return INT8
    return {"f32": FLOAT, "bf16": "bf16", "f16": "f16"}.get(precision, SHAPES)


_PROFILERS: dict[str, Callable[[Variant, Any, int], list[NodeTime]]] = {
    "onnxruntime": _profile_onnxruntime,
    "openvino": _profile_openvino,
}
