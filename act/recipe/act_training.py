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
_RATE = "TrainConfig.learning_rate"
_BUILDER = "TrainConfig.optimizer_builder"


def train_config(values: Tree, problems: Problems, notes: list[str]) -> None:
    """Rewrite ACT's forms in a TrainConfig section in place; what cannot carry over is reported."""
    if isinstance(values.get("learning_rate"), dict):
        _learning_rate(values, problems, notes)
    if "optimizer_builder" in values:
        _optimizer_builder(values, problems, notes)


def _learning_rate(values: Tree, problems: Problems, notes: list[str]) -> None:
    given = dict(values.pop("learning_rate"))
    kind = given.pop("type", None)
    if kind not in _SCHEDULES:
        problems.add(
            _RATE,
            f"the schedule {shown(kind)} has no counterpart; write learning_rate as a number, with scheduler "
            "(cosine, linear, constant) and warmup_iter; known ACT types: " + ", ".join(_SCHEDULES),
        )
        return
    if "learning_rate" not in given:
        problems.add(_RATE, f"{kind} without its learning_rate; write learning_rate as a number")
        return
    _set(values, "learning_rate", given.pop("learning_rate"), _RATE, problems)
    _set(values, "scheduler", _SCHEDULES[kind], _RATE, problems)
    for name in ("eta_min", "end_lr"):
        if name in given:
            _set(values, "min_learning_rate", given.pop(name), _RATE, problems)
    power = given.pop("power", 1)
    if power != 1:
        problems.add(_RATE, f"power {shown(power)} has no counterpart; allowed: 1, or scheduler: cosine")
    length = [name for name in ("T_max", "decay_steps") if given.pop(name, None) is not None]
    if length:
        notes.append(f"{_RATE}: {length[0]} is not used; the schedule always ends with its stage")
    for name in given:
        problems.add(f"{_RATE}.{name}", "has no counterpart; write learning_rate as a number, with scheduler")


def _optimizer_builder(values: Tree, problems: Problems, notes: list[str]) -> None:
    given = values.pop("optimizer_builder")
    if not isinstance(given, dict):
        problems.add(
            _BUILDER, f"expected a mapping, got {shown(given)}; write optimizer: adamw and weight_decay instead"
        )
        return
    given = dict(given)
    optimizer = given.pop("optimizer", None)
    if optimizer is not None:
        kind = optimizer.get("type") if isinstance(optimizer, dict) else optimizer
        if isinstance(kind, str) and kind in _OPTIMIZERS:
            _set(values, "optimizer", _OPTIMIZERS[kind], _BUILDER, problems)
            notes.append(f"{_BUILDER}: optimizer {kind} is read as timm's {_OPTIMIZERS[kind]}")
        elif kind == "SGD":
            # timm's sgd has a momentum of 0.9, which makes its steps ten times as long as ACT's at the same rate.
            problems.add(
                _BUILDER, "plain SGD has no counterpart; write optimizer: momentum and a tenth of the learning rate"
            )
        else:
            known = ", ".join(_OPTIMIZERS)
            problems.add(
                _BUILDER, f"no counterpart of the optimiser {shown(kind)}; known: {known}; or write optimizer: NAME"
            )
        for name in set(optimizer) - {"type"} if isinstance(optimizer, dict) else ():
            problems.add(f"{_BUILDER}.optimizer.{name}", "has no counterpart; remove it, or write optimizer: NAME")
    if "weight_decay" in given:
        _set(values, "weight_decay", given.pop("weight_decay"), _BUILDER, problems)
    _typed(given, "regularizer", ("L2Decay", "L2"), "coeff", "weight_decay", values, problems)
    _typed(given, "grad_clip", ("ClipGradByGlobalNorm",), "clip_norm", "clip_grad", values, problems)
    for name in given:
        problems.add(f"{_BUILDER}.{name}", "has no counterpart; write optimizer, weight_decay and clip_grad instead")


def _typed(
    given: Tree, name: str, kinds: tuple[str, ...], value: str, target: str, values: Tree, problems: Problems
) -> None:
    inner = given.pop(name, None)
    if inner is None:
        return
    if isinstance(inner, dict) and inner.get("type") in kinds and set(inner) == {"type", value}:
        _set(values, target, inner[value], _BUILDER, problems)
    else:
        allowed = f"{{type: {kinds[0]}, {value}: NUMBER}}"
        problems.add(f"{_BUILDER}.{name}", f"{shown(inner)} has no counterpart; allowed: {allowed}, or write {target}")


def _set(values: Tree, key: str, value: Any, source: str, problems: Problems) -> None:
    if key in values and values[key] != value:
        problems.add(f"TrainConfig.{key}", f"given both directly and inside {source}; keep one of them")
    else:
        values[key] = value
