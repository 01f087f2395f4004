"""ACT's forms inside TrainConfig: a scheduler under `learning_rate`, and `optimizer_builder`."""

from __future__ import annotations

from typing import Any

from act.recipe.coerce import Problems, shown

Tree = dict[str, Any]
_SCHEDULES = {"CosineAnnealingDecay": "cosine", "PolynomialDecay": "linear"}
_OPTIMIZERS = {
    "Momentum": "momentum",
    "Adam": "adam",
    "AdamW": "adamw",
    "Lamb": "lamb",
    "RMSProp": "rmsprop",
    "Adadelta": "adadelta",
}


def train_config(values: Tree, section: str, problems: Problems, notes: list[str]) -> None:
    """Rewrite ACT's forms in a TrainConfig section (or one of its stages) in place; report what cannot carry over."""
    if isinstance(values.get("learning_rate"), dict):
        _learning_rate(values, section, problems, notes)
    if "optimizer_builder" in values:
        _optimizer_builder(values, section, problems, notes)


def _learning_rate(values: Tree, section: str, problems: Problems, notes: list[str]) -> None:
    path = f"{section}.learning_rate"
    given = dict(values.pop("learning_rate"))
    kind = given.pop("type", None)
    if not isinstance(kind, str) or kind not in _SCHEDULES:
        problems.add(
            path,
            f"the schedule {shown(kind)} has no counterpart; write learning_rate as a number, with scheduler "
            "(cosine, linear, constant) and warmup_iter; known ACT types: " + ", ".join(_SCHEDULES),
        )
        return
    if "learning_rate" not in given:
        problems.add(path, f"{kind} without its learning_rate; write learning_rate as a number")
        return
    _set(values, "learning_rate", given.pop("learning_rate"), path, problems)
    _set(values, "scheduler", _SCHEDULES[kind], path, problems)
    for name in ("eta_min", "end_lr"):
        if name in given:
            _set(values, "min_learning_rate", given.pop(name), path, problems)
    power = given.pop("power", 1)
    if power != 1:
        problems.add(path, f"power {shown(power)} has no counterpart; allowed: 1, or scheduler: cosine")
    length = [name for name in ("T_max", "decay_steps") if given.pop(name, None) is not None]
    if length:
        notes.append(f"{path}: {length[0]} is not used; the schedule always ends with its stage")
    for name in given:
        problems.add(f"{path}.{name}", "has no counterpart; write learning_rate as a number, with scheduler")


def _optimizer_builder(values: Tree, section: str, problems: Problems, notes: list[str]) -> None:
    path = f"{section}.optimizer_builder"
    given = values.pop("optimizer_builder")
    if not isinstance(given, dict):
        problems.add(path, f"expected a mapping, got {shown(given)}; write optimizer: adamw and weight_decay instead")
        return
    given = dict(given)
    optimizer = given.pop("optimizer", None)
    if optimizer is not None:
        kind = optimizer.get("type") if isinstance(optimizer, dict) else optimizer
        if isinstance(kind, str) and kind in _OPTIMIZERS:
            _set(values, "optimizer", _OPTIMIZERS[kind], path, problems)
            notes.append(f"{path}: optimizer {kind} is read as timm's {_OPTIMIZERS[kind]}")
        elif kind == "SGD":
            # timm's sgd has a momentum of 0.9, which makes its steps ten times as long as ACT's at the same rate.
            problems.add(
                path, "plain SGD has no counterpart; write optimizer: momentum and a tenth of the learning rate"
            )
        else:
            known = ", ".join(_OPTIMIZERS)
            problems.add(
                path, f"no counterpart of the optimiser {shown(kind)}; known: {known}; or write optimizer: NAME"
            )
        for name in set(optimizer) - {"type"} if isinstance(optimizer, dict) else ():
            problems.add(f"{path}.optimizer.{name}", "has no counterpart; remove it, or write optimizer: NAME")
    if "weight_decay" in given:
        _set(values, "weight_decay", given.pop("weight_decay"), path, problems)
    _typed(given, "regularizer", ("L2Decay", "L2"), "coeff", "weight_decay", values, path, problems)
    _typed(given, "grad_clip", ("ClipGradByGlobalNorm",), "clip_norm", "clip_grad", values, path, problems)
    for name in given:
        problems.add(f"{path}.{name}", "has no counterpart; write optimizer, weight_decay and clip_grad instead")


def _typed(
    given: Tree, name: str, kinds: tuple[str, ...], value: str, target: str, values: Tree, path: str, problems: Problems
) -> None:
    inner = given.pop(name, None)
    if inner is None:
        return
    if isinstance(inner, dict) and inner.get("type") in kinds and set(inner) == {"type", value}:
        _set(values, target, inner[value], path, problems)
    else:
        allowed = f"{{type: {kinds[0]}, {value}: NUMBER}}"
        problems.add(f"{path}.{name}", f"{shown(inner)} has no counterpart; allowed: {allowed}, or write {target}")


def _set(values: Tree, key: str, value: Any, source: str, problems: Problems) -> None:
    if key in values and values[key] != value:
        problems.add(f"{source.rpartition('.')[0]}.{key}", f"given both directly and inside {source}; keep one of them")
    else:
        values[key] = value
