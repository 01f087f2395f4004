"""What every size of every group costs in time, measured on this machine in the runtime that the target names.

A group is not timed alone: copies of the whole model, in the precision that the recipe ends with, are exported and run
in turns, each with one part of all groups of one kind cut to one size; the difference from the full model, divided by
the number of those groups, is what that size saves. So everything a runtime fuses, and all that is no matrix product,
is in the figure. Tables are kept by what they depend on: shapes, precision, runtime, machine.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from act.backends import get_backend
from act.edits import apply_edit
from act.errors import InputError
from act.quant.config import QuantConfig
from act.quant.prepare import quant_plan
from act.run.atomic import write_json
from act.run.environment import describe
from act.run.timing import time_in_turns
from act.structure.cost import full_size
from act.structure.planner import DIMS, Space, part_size
from act.structure.reducer import Size
from act.structure.shrink import shrink_edit
from act.structure.units import Found, Group

if TYPE_CHECKING:
    from act.context import Context

SECONDS = 6.0  # of timing for each variant, in turns with the others
FULL = "full"  # the name of the uncut model
_SCALE = 0.05  # of the stand-in quantisers; what codes come out does not matter for the time
Curve = dict[int, float]  # milliseconds of one group by size


class LatencyTable:
    """Milliseconds of a group at a size, and of the whole model, at the target's batch."""

    def __init__(
        self,
        total: float,
        curves: Mapping[str, Mapping[str, Curve]],
        groups: Sequence[Group],
        widths: Mapping[int, float] | None = None,
    ) -> None:
        """`curves` by group and unit; `widths`: milliseconds of the whole model at other widths of its stream."""
        self.total, self._curves, self.widths = total, curves, dict(widths or {})
        self._groups = {group.name: group for group in groups}

    def cost(self, name: str, size: Size) -> float:
        """Milliseconds less what no size changes: negative, the saving against the full size. What the parts of an
        attention save is added, dimensions in proportion to the heads that are left; that q, k and v have as many
        dimensions each is measured apart, since some runtimes fuse only such an attention."""
        group, curves = self._groups[name], self._curves[name]
        full = full_size(group)
        if len(size) == 1:
            return self._saved(curves, "mlp", size[0])
        if size[1] == size[2] and DIMS in curves:
            dims = self._saved(curves, DIMS, size[1])
        else:
            dims = self._saved(curves, "qk", size[1]) + self._saved(curves, "v", size[2])
        return self._saved(curves, "heads", size[0]) + size[0] / full[0] * dims

    @staticmethod
    def _saved(curves: Mapping[str, Curve], unit: str, size: int) -> float:
        curve = curves.get(unit)
        if not curve:
            return 0.0
        sizes = sorted(curve)
        return float(np.interp(size, sizes, [curve[s] for s in sizes])) - curve[sizes[-1]]


def latency_table(
    model: nn.Module, found: Found, space: Space, ctx: Context, widths: Sequence[int] = ()
) -> LatencyTable:
    """Measure what was not measured before on this machine; `widths` of the residual stream as well. `model` is left
    unchanged."""
    kinds = _kinds(model, found.groups, space)
    variants: dict[str, dict[str, Any]] = {}
    for kind, groups in kinds.items():
        for unit, sizes in timed_sizes(space, groups[0]).items():
            for size in _few(sizes)[1:]:
                cut = {group.name: part_size(group, unit, size) for group in groups}
                variants[f"{kind} {unit} {size}"] = shrink_edit(cut)
    variants |= {f"width {width}": {"op": "narrow", "width": width} for width in widths}
    times = _known(_cache(model, ctx), model, variants, ctx)
    curves: dict[str, dict[str, Curve]] = {}
    for kind, groups in kinds.items():
        own: dict[str, Curve] = {}
        for unit, sizes in timed_sizes(space, groups[0]).items():
            # A smaller size that was timed as slower is noise, or an odd size that should not be taken: both cost.
            taken = {s: (FULL if s == sizes[0] else f"{kind} {unit} {s}") for s in _few(sizes)}
            own[unit] = {size: times[name] / len(groups) for size, name in taken.items()}
        curves |= dict.fromkeys((group.name for group in groups), own)
    return LatencyTable(times[FULL], curves, found.groups, {width: times[f"width {width}"] for width in widths})


def _known(file: Path, model: nn.Module, variants: Mapping[str, dict[str, Any]], ctx: Context) -> dict[str, float]:
    """Median milliseconds of the full model and of each variant, by name; `file` keeps them."""
    times = _read(file) or {}
    missing = {name: edit for name, edit in variants.items() if name not in times}
    if times and not missing:
        ctx.log("latency", f"latency table of this machine read from {file}")
        return times
    models = {FULL: model}
    for name, edit in missing.items():
        models[name] = copy.deepcopy(model)
        apply_edit(models[name], edit)
    new = time_models(models, ctx)
    # What is added later is brought to the pace that the machine had at first.
    pace = times.get(FULL, new[FULL]) / new[FULL]
    times = {name: ms * pace for name, ms in new.items()} | times
    write_json(file, times)
    ctx.log("latency", f"latency table kept in {file}")
    return times


def timed_sizes(space: Space, group: Group) -> dict[str, list[int]]:
    """The sizes of each part of a group, and of its q, k and v together where they are alike."""
    found = space.sizes(group)
    if "qk" in found and found["qk"] == found.get("v"):
        found[DIMS] = found["qk"]
    return found


def _few(sizes: Sequence[int]) -> list[int]:
    """At most five sizes, evenly spread; times between them are interpolated."""
    count = min(5, len(sizes))
    return [sizes[round(i * (len(sizes) - 1) / max(1, count - 1))] for i in range(count)]


def _kinds(model: nn.Module, groups: Sequence[Group], space: Space) -> dict[str, list[Group]]:
    """Groups whose modules have the same shapes, by a short name of the kind."""
    kinds: dict[str, list[Group]] = {}
    for group in groups:
        if space.sizes(group):
            shapes = [tuple(p.shape) for p in model.get_submodule(group.name).parameters()]
            kinds.setdefault(f"{'x'.join(map(str, full_size(group)))} {hash_of(shapes)[:6]}", []).append(group)
    return kinds


def time_models(models: Mapping[str, nn.Module], ctx: Context) -> dict[str, float]:
    """Median milliseconds of each model at the target's batch in its backend, timed in turns, in the precision that
    the recipe ends with."""
    recipe, form = ctx.recipe, _format(ctx)
    with tempfile.TemporaryDirectory(prefix="vitcompress-latency-") as folder:
        runs = {}
        for number, (name, model) in enumerate(models.items(), 1):
            ctx.log("latency", f"{number}/{len(models)} exporting {name} for {recipe.target.backend}")
            path = _export(model, Path(folder) / str(number), form, ctx)
            runs[name] = get_backend(recipe.target.backend).load(path, recipe.export.threads).run
        batch = recipe.target.batch
        times = time_in_turns(runs, [batch], ctx.input_size, SECONDS * len(runs))
    return {name: times[name][str(batch)]["median_ms"] for name in models}


def _export(model: nn.Module, folder: Path, form: str, ctx: Context) -> Path:
    """The model, with the quantisers that the recipe will add, as a file of the runtime."""
    from act.run.formats import FORMATS, MAIN, Job

    twin = copy.deepcopy(model)
    config = next((c for c in ctx.recipe.strategies.values() if isinstance(c, QuantConfig)), None)
    if config is not None:
        stand_in_quantizers(twin, config, ctx)
    folder.mkdir()
    # Which form attention takes is decided at the end, for the model as it then is.
    recipe = dataclasses.replace(ctx.recipe, export=dataclasses.replace(ctx.recipe.export, attention="int8"))
    job = Job(twin, folder / "model.onnx", dataclasses.replace(ctx, recipe=recipe), {})
    written = FORMATS[MAIN].write(job)
    return written.path if form == MAIN else FORMATS[form].write(job).path


def stand_in_quantizers(model: nn.Module, config: QuantConfig, ctx: Context) -> None:
    """Give `model` the quantisers of `config` with one scale for all: right for timing, and for nothing else."""
    from act.quant.fake_quant import FakeQuantize
    from act.quant.matmul import attention_modules

    plan = quant_plan(model, config, ctx)
    attentions = [name for name in plan.done if name in set(attention_modules(model))]
    edge = set() if config.first_and_last else plan.edge
    specs: dict[str, dict[str, Any]] = {
        name: {
            "weight_bits": config.weight_bits,
            "activation_bits": config.input_bits(name, name in edge),
        }
        for name in plan.done
        if name not in attentions
    }
    apply_edit(model, {"op": "quantize", "layers": specs})
    if attentions:
        apply_edit(model, {"op": "quantize_matmul", "layers": attentions, "activation_bits": config.activation_bits})
    for module in model.modules():
        if isinstance(module, FakeQuantize):
            module.scale.data.fill_(_SCALE)


def _format(ctx: Context) -> str:
    """The export format that the target's backend will open: its own where the recipe has it, else the main file."""
    from act.run.formats import FORMATS, MAIN

    backend = ctx.recipe.target.backend
    own = [f for f in ctx.recipe.export.formats if FORMATS[f].backend == backend and FORMATS[f].timed]
    if not own and FORMATS[MAIN].backend != backend:
        raise InputError(
            f"TransformerPrune.of: latency in {backend} needs its file; add {backend} to export.formats, or set "
            "target.backend"
        )
    return next((f for f in own if f != MAIN), MAIN)


def _cache(model: nn.Module, ctx: Context) -> Path:
    recipe, machine = ctx.recipe, describe()
    quant = next((c for c in recipe.strategies.values() if isinstance(c, QuantConfig)), None)
    key = hash_of(
        [
            [(name, tuple(p.shape)) for name, p in model.named_parameters()],
            type(model).__name__,
            None if quant is None else dataclasses.asdict(quant),
            [recipe.target.backend, recipe.target.batch, recipe.export.threads, _format(ctx), ctx.input_size],
            [machine[part] for part in ("cpu", "cpu_features", "cores", "packages", "vitcompress")],
        ]
    )
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "vitcompress" / "latency" / f"{key[:24]}.json"


def _read(file: Path) -> dict[str, float] | None:
    try:
        times = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    sound = isinstance(times, dict) and all(isinstance(ms, float) and ms > 0 for ms in times.values())
    return times if sound else None


def hash_of(value: Any) -> str:
    """sha256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()
