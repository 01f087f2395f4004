"""`vitcompress verify --target tensorrt`: what TensorRT 10 and 11 would refuse or run slowly, without TensorRT.

The rules are pure functions of the ONNX graph; each is in the registry `RULES` under its name.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from act.errors import InputError
from act.export.onnx_graph import Graph
from act.sparsity.masks import parse_pattern
from act.verify import tensorrt_products, tensorrt_qdq
from act.verify.match import Expected
from act.verify.onnx_file import OnnxFile
from act.verify.tensorrt_products import sparse_kernels
from act.verify.tensorrt_rules import ERROR, RULES, WARNING, Finding, Subject, label

__all__ = [
    "ERROR",
    "RULES",
    "SPARSE",
    "TENSORRT_FILE",
    "WARNING",
    "Finding",
    "lint",
    "lint_file",
    "pick_file",
    "sparse_products",
]

SPARSE = "vitcompress.sparse"  # metadata key: JSON of layer names and their N:M patterns
TENSORRT_FILE = "model.tensorrt.onnx"
_SUFFIXES = ("", ".weight_int8", ".weight_float", ".weight")
_REGISTERED = (tensorrt_qdq, tensorrt_products)  # importing them filled RULES


def pick_file(path: str | Path) -> Path:
    """The ONNX file to look at: `path` itself, or the TensorRT file of a run or artifact folder, else its main one."""
    found = Path(path)
    if not found.is_dir():
        return found
    folder = found / "artifact" if (found / "artifact").is_dir() else found
    for name in (TENSORRT_FILE, "model.onnx"):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{path}: holds neither {TENSORRT_FILE} nor model.onnx; name an ONNX file or an artifact folder")


def lint_file(path: str | Path, sparse: Iterable[str] = ()) -> list[Finding]:
    """Every rule on one ONNX file; errors first.

    2:4 is checked on the layers that the file's metadata, an arch.json beside it or `sparse` (globs of layer names)
    claim to be sparse. InputError when the file cannot be read.
    """
    file = OnnxFile(path)
    claims = _metadata_claims(file) | _folder_claims(file.path.parent)
    return lint(file, claims, tuple(sparse))


def sparse_products(path: str | Path) -> tuple[str, ...]:
    """Names of the nodes whose weights the file, or an arch.json beside it, says are 2:4, or sparser."""
    file = OnnxFile(path)
    subject = _subject(file, _metadata_claims(file) | _folder_claims(file.path.parent), ())
    claimed = [weight for weight in subject.graph.weights() if weight.name in subject.sparse]
    return tuple(label(weight.product) for weight in claimed if sparse_kernels(subject.sparse[weight.name]))


def lint(file: OnnxFile, claims: Mapping[str, str] | None = None, globs: Iterable[str] = ()) -> list[Finding]:
    """`lint_file` for an opened file; `claims` maps layer or initialiser names to patterns."""
    subject = _subject(file, claims or {}, tuple(globs))
    found = [
        Finding(item.level, item.name, node, text) for item in RULES.values() for node, text in item.check(subject)
    ]
    return sorted(found, key=lambda finding: finding.level != ERROR)


def _subject(file: OnnxFile, claims: Mapping[str, str], globs: tuple[str, ...]) -> Subject:
    graph = Graph(file.model)
    nodes: dict[str, set[str]] = {}
    for weight in graph.weights():
        nodes.setdefault(weight.name, set()).add(label(weight.product))
    sparse, lost = {}, []
    for layer, pattern in claims.items():
        stored = (file.stored_name(layer + suffix) or layer + suffix for suffix in _SUFFIXES)
        name = next((name for name in stored if name in nodes), None)
        if name is None:
            lost.append(layer)
        else:
            sparse[name] = pattern
    for glob in globs:
        found = [name for name in nodes if any(_fits(text, glob) for text in (name, *nodes[name]))]
        sparse |= dict.fromkeys(found, "2:4")
        lost += [] if found else [glob]
    return Subject(graph, sparse, tuple(lost))


def _fits(name: str, glob: str) -> bool:
    names = {name, name.rpartition("/")[0]} | {name.removesuffix(suffix) for suffix in _SUFFIXES}
    return any(fnmatch.fnmatchcase(item, glob) for item in names if item)


def _metadata_claims(file: OnnxFile) -> dict[str, str]:
    text = next((prop.value for prop in file.model.metadata_props if prop.key == SPARSE), "{}")
    try:
        claims = {str(name): str(pattern) for name, pattern in json.loads(text).items()}
        for pattern in claims.values():
            parse_pattern(pattern)
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file.path}: metadata {SPARSE}: must map layers to patterns such as 2:4: {error}") from error
    return claims


def _folder_claims(folder: Path) -> dict[str, str]:
    if not (folder / "arch.json").is_file():
        return {}
    from act.rebuild import read_arch

    edits = read_arch(folder)["edits"]
    try:
        return Expected.from_edits(edits).masks
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # an entry that no edit has
        raise InputError(f"{folder / 'arch.json'}: edits: cannot be read ({error!r}); it is damaged") from error
