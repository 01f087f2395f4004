"""Values that have the right type and still cannot be: ranges, names and combinations of the top-level sections."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from act.backends import backends
from act.recipe.coerce import Problems, near, shown
from act.recipe.schema import DataConfig, ExportConfig, ModelConfig, Recipe, TargetConfig, TrainConfig
from act.strategies.base import Strategy
from act.train.check import train_problems

SCHEMA = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
METRICS = ("top1", "agreement")
# Keyword arguments of timm.create_model that read other files or the network, and may unpickle what they find.
FORBIDDEN_KWARGS = ("checkpoint_path", "cache_dir", "pretrained")


@dataclass(frozen=True)
class Range:
    """Allowed numbers: from `low` to `high`, ends included unless `above`."""

    low: float
    high: float
    above: bool = False  # low itself is not allowed

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        return f"{'above ' if self.above else ''}{self.low:g} to {self.high:g}"


_COUNT = Range(1, 1_000_000_000)
_MANY = Range(1, 1_000_000)
_PERCENT = Range(0, 100)
_DATA = {
    "batch_size": Range(1, 65_536),
    "workers": Range(0, 256),
    "calibration_images": _MANY,
    "resize": Range(1, 16_384),
    "crop_pct": Range(0, 1, above=True),
    "max_bad_images": Range(0, 1_000_000),
    "limit_train": _COUNT,
    "limit_val": _COUNT,
}
_TARGET = {
    "max_drop": Range(0, 100),
    "min_agreement": _PERCENT,
    "latency_ms": Range(0, 1e9, above=True),
    "speedup": Range(0, 1e6, above=True),
    "bytes": Range(1, 1e15),
    "macs": Range(1, 1e15),
    "attempts": Range(1, 20),
    "batch": Range(1, 65_536),
}
_EXPORT = {"opset": Range(19, 23), "threads": Range(0, 4096), "min_agreement": _PERCENT, "max_abs_diff": Range(0, 1e9)}
_CHOICES: dict[str, dict[str, Sequence[str]]] = {
    "data": {
        "crop_mode": ("center", "squash", "border"),
        "interpolation": ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"),
    },
    "target": {"device": ("cpu", "cuda")},
    "export": {"attention": ("auto", "int8", "float")},
}


def check_top(recipe: Recipe, problems: Problems) -> None:
    """Name, schema version and seed."""
    if not NAME.fullmatch(recipe.name):
        problems.add(
            "name", f"{shown(recipe.name)} cannot name a folder; allowed: letters, digits, '.', '_', '-', up to 100"
        )
    if recipe.schema != SCHEMA:
        problems.add("schema", f"{recipe.schema} is not known to this version; allowed: {SCHEMA}")
    if not 0 <= recipe.seed < 2**31:
        problems.add("seed", f"{shown(recipe.seed)} is out of range; allowed: 0 to {2**31 - 1}")


def check_model(cfg: ModelConfig, key: str, problems: Problems) -> None:
    """The model's name is one of timm's; used for every model a recipe names, under `key`."""
    if cfg.num_classes is not None and not 1 <= cfg.num_classes <= 1_000_000:
        problems.add(f"{key}.num_classes", f"{cfg.num_classes} is out of range; allowed: 1 to 1000000")
    for name in cfg.kwargs:
        if name.startswith(FORBIDDEN_KWARGS):
            problems.add(f"{key}.kwargs.{name}", f"would read another file; write {key}.checkpoint or {key}.pretrained")
    problem = None if cfg.name is None else unknown_model(cfg.name)
    if problem is not None:
        problems.add(f"{key}.name", problem)


def unknown_model(name: str) -> str | None:
    """None for a name of timm's, with or without the tag of its weights; else what is wrong with it."""
    import timm

    known = timm.list_models()
    if name in known or (timm.is_model(name) and name in timm.list_pretrained()):
        return None
    hint = near(name, known) or "; allowed: what timm.list_models() lists"
    return f"timm {timm.__version__} has no model {shown(name)}{hint}"


def check_data(cfg: DataConfig, problems: Problems) -> None:
    """Ranges, names and shapes of the data section."""
    _ranges(cfg, _DATA, "data", problems)
    _choices(cfg, "data", "data", problems)
    size = cfg.input_size
    if size is not None and (
        len(size) != 3 or not 1 <= size[0] <= 4 or not all(1 <= side <= 16_384 for side in size[1:])
    ):
        problems.add("data.input_size", f"{shown(size)}; allowed: [channels, height, width], e.g. [3, 224, 224]")
    if cfg.crop_pct is not None and cfg.resize is not None:
        problems.add("data.resize", "sets the size before the crop, as data.crop_pct does; leave one of them out")
    for name in ("mean", "std"):
        values = getattr(cfg, name)
        if values is not None and (len(values) not in (1, 3) or (name == "std" and min(values) <= 0)):
            above = ", each above 0" if name == "std" else ""
            problems.add(f"data.{name}", f"{shown(values)}; allowed: one number per channel (1 or 3){above}")
    if not 0 <= cfg.augment.hflip <= 1:
        problems.add("data.augment.hflip", f"{cfg.augment.hflip:g} is not a probability; allowed: 0 to 1")
    if not 0 < cfg.augment.scale <= 1:
        problems.add("data.augment.scale", f"{cfg.augment.scale:g} is no share of an area; allowed: above 0, up to 1")
    if not 0 <= cfg.augment.shift <= 1024:
        problems.add("data.augment.shift", f"{cfg.augment.shift} is out of range; allowed: 0 to 1024 pixels")


def check_train(cfg: TrainConfig, key: str, problems: Problems) -> None:
    """Ranges, names and combinations of one stage's training section."""
    for problem in train_problems(cfg):
        name, _, what = problem.partition(": ")
        problems.add(f"{key}.{name.partition(',')[0]}", what)
    if cfg.metric is not None and cfg.metric not in METRICS:
        hint = near(cfg.metric, METRICS)
        problems.add(f"{key}.metric", f"{shown(cfg.metric)} is unknown{hint}; allowed: {', '.join(METRICS)}")
    if cfg.warmup_iter and cfg.train_iter is not None and cfg.warmup_iter >= cfg.train_iter > 0:
        problems.add(f"{key}.warmup_iter", f"{cfg.warmup_iter} leaves no step of the {cfg.train_iter}; allowed: fewer")


def check_target(cfg: TargetConfig, problems: Problems) -> None:
    """Ranges and names of the goals."""
    _ranges(cfg, _TARGET, "target", problems)
    _choices(cfg, "target", "target", problems)
    known = backends()
    if cfg.backend not in known:
        hint = near(cfg.backend, known)
        problems.add("target.backend", f"{shown(cfg.backend)} is unknown{hint}; allowed: {', '.join(known)}")


def check_export(cfg: ExportConfig, problems: Problems) -> None:
    """Ranges of the export section."""
    _ranges(cfg, _EXPORT, "export", problems)
    _choices(cfg, "export", "export", problems)
    from act.run.formats import name_problem  # which needs the schema of recipes itself

    if (problem := name_problem(cfg.formats)) is not None:
        problems.add("export.formats", problem)
    for index, batch in enumerate(cfg.benchmark_batches):
        if not 1 <= batch <= 65_536:
            problems.add(f"export.benchmark_batches[{index}]", f"{batch} is out of range; allowed: 1 to 65536")


def check_combination(strategies: dict[str, Any], registry: dict[str, type[Strategy]], problems: Problems) -> None:
    """Refuse strategies that contradict one another, each pair once."""
    seen: set[frozenset[str]] = set()
    for name in strategies:
        for other in registry[name].excludes:
            pair = frozenset((name, other))
            if other in strategies and pair not in seen:
                seen.add(pair)
                problems.add(name, f"contradicts {other}; keep one of them")


def _ranges(cfg: Any, table: dict[str, Range], key: str, problems: Problems) -> None:
    for name, allowed in table.items():
        value = getattr(cfg, name)
        if value is not None and value not in allowed:
            problems.add(f"{key}.{name}", f"{shown(value)} is out of range; allowed: {allowed}")


def _choices(cfg: Any, section: str, key: str, problems: Problems) -> None:
    for name, allowed in _CHOICES[section].items():
        value = getattr(cfg, name)
        if value is not None and value not in allowed:
            hint = near(value, allowed)
            problems.add(f"{key}.{name}", f"{shown(value)} is unknown{hint}; allowed: {', '.join(allowed)}")
