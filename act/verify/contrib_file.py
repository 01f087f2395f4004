"""Whether the file in ONNX Runtime's own operators is the main file, rewritten, and nothing else."""

from __future__ import annotations

from pathlib import Path

from act.backends.onnx_guard import read_onnx
from act.export.contrib import FORM, to_contrib
from act.run.choice import ATTENTIONS
from act.verify.rules import Broken

CONTRIB_FILE = "model.onnxruntime.onnx"


def contrib_file(main: Path, path: Path) -> str:
    """Rewrites `main` anew and compares every node and tensor with those of `path`; Broken where they differ."""
    wanted, found = read_onnx(main), read_onnx(path)
    form = next((prop.value for prop in found.metadata_props if prop.key == FORM), "none")
    if form not in ATTENTIONS:
        raise Broken(f"{path.name}: does not say how its attention runs ({form}); allowed: {', '.join(ATTENTIONS)}")
    made = to_contrib(wanted, form)
    wanted.metadata_props.add(key=FORM, value=form)
    tensors = {tensor.name: tensor for tensor in wanted.graph.initializer}
    others = {tensor.name: tensor for tensor in found.graph.initializer}
    wrong = [name for name in tensors.keys() | others.keys() if tensors.get(name) != others.get(name)]
    if wrong:
        raise Broken(f"{path.name}: {len(wrong)} tensors are not those of {main.name}: {', '.join(sorted(wrong)[:3])}")
    if found != wanted:
        raise Broken(f"{path.name}: its graph is not that of {main.name}; export it again")
    return ", ".join(f"{count} {name}" for name, count in made.items() if count)
