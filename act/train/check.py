"""What a TrainConfig may say, beyond the types of its fields."""

from __future__ import annotations

import difflib

from act.recipe.schema import TrainConfig

SCHEDULERS = ("cosine", "linear", "constant")
AMP = ("no", "bf16")
SELECT = ("last", "best")
METRIC_MODES = ("max", "min")


def train_problems(cfg: TrainConfig) -> list[str]:
    """Impossible values or combinations, each `key: what is wrong; what is allowed`."""
    return _choices(cfg) + _numbers(cfg) + _combinations(cfg) + _trackers(cfg)


def _choices(cfg: TrainConfig) -> list[str]:
    import timm.optim

    problems = []
    for key, allowed in (
        ("scheduler", SCHEDULERS),
        ("amp", AMP),
        ("select", SELECT),
        ("metric_mode", METRIC_MODES),
    ):
        if getattr(cfg, key) not in allowed:
            problems.append(f"{key}: {getattr(cfg, key)!r} is unknown; allowed: {', '.join(allowed)}")
    known = timm.optim.list_optimizers()
    if cfg.optimizer.lower() not in known:
        near = difflib.get_close_matches(cfg.optimizer.lower(), known, n=3)
        hint = f" (did you mean {', '.join(near)}?)" if near else ""
        problems.append(f"optimizer: timm has no {cfg.optimizer!r}{hint}; allowed: any name of timm.optim, e.g. adamw")
    return problems


def _numbers(cfg: TrainConfig) -> list[str]:
    problems = []
    for key in ("epochs", "train_iter", "batch_size", "eval_iter", "accumulation", "logging_iter", "save_iter"):
        value = getattr(cfg, key)
        if value is not None and value < 1:
            problems.append(f"{key}: {value} is too small; allowed: 1 or more")
    for key in ("min_learning_rate", "weight_decay", "range_weight_decay", "warmup_iter", "origin_tolerance"):
        if getattr(cfg, key) < 0:
            problems.append(f"{key}: {getattr(cfg, key)} is negative; allowed: 0 or more")
    for key in ("learning_rate", "range_learning_rate", "clip_grad"):
        value = getattr(cfg, key)
        if value is not None and value <= 0:
            problems.append(f"{key}: {value} must be above 0")
    if cfg.min_learning_rate > cfg.learning_rate:
        problems.append(f"min_learning_rate: {cfg.min_learning_rate} is above learning_rate {cfg.learning_rate}")
    if cfg.ema_decay is not None and not 0 < cfg.ema_decay < 1:
        problems.append(f"ema_decay: {cfg.ema_decay} must lie between 0 and 1, e.g. 0.999")
    return problems


def _combinations(cfg: TrainConfig) -> list[str]:
    problems = []
    if cfg.epochs is not None and cfg.train_iter is not None:
        problems.append("epochs, train_iter: both are given; leave one of them out")
    if cfg.eval_iter is None and cfg.select == "best":
        problems.append("select: best compares evaluations made while training; give eval_iter a number of steps")
    if cfg.eval_iter is None and cfg.target_metric is not None:
        problems.append("target_metric: it is looked at when evaluating; give eval_iter a number of steps")
    return problems


def _trackers(cfg: TrainConfig) -> list[str]:
    if not cfg.trackers:
        return []
    from accelerate.utils import LoggerType

    known = [str(kind.value) for kind in LoggerType if kind != LoggerType.ALL]
    return [
        f"trackers: {name!r} is none of accelerate's; those are {', '.join(known)}"
        for name in cfg.trackers
        if name not in known
    ]
