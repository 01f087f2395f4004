"""PaddleSlim ACT spellings: accepted where they mean the same here, otherwise refused with what to write instead.

Section and field names of ACT are those of `paddleslim/auto_compression/strategy_config.py`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

from act.recipe.act_training import train_config
from act.recipe.coerce import Problems, shown
from act.strategies.base import Strategy

Tree = dict[str, Any]
SECTIONS = {"ASPPrune": "Prune", "Quantization": "QuantAware"}
_REFUSED_SECTIONS = {
    "Global": "has no counterpart; write `model: {name: TIMM_NAME, checkpoint: FILE}` and `data: {train: DIR}`",
    "MultiTeacherDistillation": "write Distillation with its list of teachers",
    "HyperParameterOptimization": "is not part of this tool; write QuantPost, whose calibration needs no search",
    "ChannelPrune": "is for convolutional networks; write Prune for 2:4 sparsity",
    "UnstructurePrune": "speeds nothing up in the runtimes served here; write Prune for 2:4 sparsity",
    "Distill": "write Distillation",
}
_OP_TYPES: dict[str, list[str]] = {
    "depthwise_conv2d": ["conv2d"],
    "mul": ["linear"],
    # ACT's op type covers both the layers with weights and the products of two activations.
    "matmul_v2": ["linear", "matmul"],
}
_ALGORITHMS = {"hist": "percentile", "KL": "entropy", "mse": "mse", "abs_max": "minmax"}
_PADDLE_NAME = re.compile(
    r"[A-Za-z_]+\d*\.(?:tmp|w|b|out|cast)_\d+|.*\.tmp_\d+|(?:save_infer_model|elementwise_|batch_norm)\S*"
)
_NO_ONNX = "remove it; `export: {formats: [onnx]}` decides the files, and QDQ with int8 weights is the only form"
_TEACHER = "a Paddle model cannot be read; leave it out for the original model as teacher, or name a timm model"
_RANGES = "remove it; ranges start from calibration and QuantAware learns them"

# Field -> what to write instead, for fields that the section's own dataclass does not have.
_REFUSED_FIELDS: dict[str, dict[str, str]] = {
    "QuantAware": {
        "onnx_format": _NO_ONNX,
        "for_tensorrt": "remove it; write `export: {formats: [onnx, tensorrt]}`",
        "is_full_quantize": "remove it; quantize_op_types names what is quantised",
        "activation_quantize_type": _RANGES,
        "window_size": _RANGES,
        "moving_rate": _RANGES,
    },
    "QuantPost": {
        "onnx_format": _NO_ONNX,
        "is_full_quantize": "remove it; quantize_op_types names what is quantised",
        "activation_quantize_type": "remove it; the calibration method decides the ranges",
        "batch_nums": "write images (batches times batch size)",
        "batch_size": "write data.batch_size",
        "epochs": "remove it; QuantPost does not train, QuantAware does",
        "lr": "remove it; QuantPost does not train, QuantAware does",
        "recon_level": "remove it; write QuantAware to train the quantised model",
        "simulate_activation_quant": "remove it; there is no reconstruction to simulate for",
        "region_weights_names": "remove it; there is no reconstruction",
        "regions": "remove it; there is no reconstruction",
        "skip_tensor_list": "Paddle variable names mean nothing here; write `exclude: [GLOB]` with module names",
        "bias_correct": "write bias_correction",
    },
    "Distillation": {
        "teacher_model_dir": _TEACHER,
        "teacher_model_filename": _TEACHER,
        "teacher_params_filename": _TEACHER,
    },
    "Prune": {
        "prune_params_name": "Paddle parameter names mean nothing here; write `include: [GLOB]` with module names",
        "pruned_ratio": 'remove it; write the sparsity as `pattern: "2:4"`',
    },
    "TrainConfig": {
        "amp_config": "write `amp: bf16`",
        "recompute_config": "remove it; activations are not recomputed",
        "sharding_config": "remove it; start the run with `accelerate launch`",
        "sparse_model": "remove it; masks hold in every stage without being asked for",
    },
}
# Values of an ACT field that say what is done here anyway; the field is dropped with a note.
_IMPLIED: dict[str, dict[str, list[Any]]] = {
    "QuantAware": {
        "weight_quantize_type": ["channel_wise_abs_max"],
        "dtype": ["int8"],
        "not_quant_pattern": [["skip_quant"], "skip_quant"],
    },
    "QuantPost": {"weight_quantize_type": ["channel_wise_abs_max"], "dtype": ["int8"]},
}


def section_name(name: str, registry: dict[str, type[Strategy]]) -> str:
    """The section that `name` stands for: itself, or what it is an alias of."""
    if name in registry:
        return name
    for cls in registry.values():
        if name in cls.aliases:
            return cls.name
    return SECTIONS.get(name, name)


def rename_sections(tree: Tree, registry: dict[str, type[Strategy]], problems: Problems) -> Tree:
    """`tree` with canonical section names; ACT sections without a counterpart are reported and left out."""
    result: Tree = {}
    origin: dict[str, str] = {}
    for name, value in tree.items():
        target = section_name(name, registry)
        if target in origin:
            problems.add(name, f"is the same section as {origin[target]}; keep one of them")
        elif target in _REFUSED_SECTIONS and target not in registry:
            problems.add(name, _REFUSED_SECTIONS[target])
        else:
            result[target] = value
            origin[target] = name
    return result


def canonical_lines(lines: dict[str, int], registry: dict[str, type[Strategy]]) -> dict[str, int]:
    """The line numbers of keys, under their canonical section names as well."""
    renamed = {}
    for key, line in lines.items():
        first, dot, rest = key.partition(".")
        renamed[section_name(first, registry) + dot + rest] = line
    return lines | renamed


def act_fields(tree: Tree, sections: dict[str, type], problems: Problems) -> list[str]:
    """Map ACT's fields and values inside the sections of `tree`, in place; notes of what was changed.

    `sections` has the dataclass of each section: a field it knows itself is never taken for one of ACT's.
    """
    notes: list[str] = []
    for name, cls in sections.items():
        values = tree.get(name)
        if not isinstance(values, dict):
            continue
        _foreign_fields(name, name, cls, values, problems, notes)
        for key, mapper in _VALUES.get(name, {}).items():
            if key in values:
                values[key] = mapper(f"{name}.{key}", values[key], problems, notes)
    for path, values in _training_sections(tree):
        if path != "TrainConfig":
            _foreign_fields("TrainConfig", path, sections["TrainConfig"], values, problems, notes)
        train_config(values, path, problems, notes)
    return notes


def _training_sections(tree: Tree) -> Iterable[tuple[str, Tree]]:
    """TrainConfig and its stages, as far as they are mappings, with their paths."""
    train = tree.get("TrainConfig")
    if isinstance(train, dict):
        yield "TrainConfig", train
        stages = train.get("stages")
        for name, values in stages.items() if isinstance(stages, dict) else ():
            if isinstance(values, dict):
                yield f"TrainConfig.stages.{name}", values


def _foreign_fields(section: str, path: str, cls: type, values: Tree, problems: Problems, notes: list[str]) -> None:
    """The fields of `values` that `cls` does not have; `path` is where they stand."""
    own = {field.name for field in dataclasses.fields(cls)}
    for key in [key for key in values if key not in own]:
        _act_field(section, path, key, values, problems, notes)


def _act_field(section: str, where: str, key: str, values: Tree, problems: Problems, notes: list[str]) -> None:
    path = f"{where}.{key}"
    implied = _IMPLIED.get(section, {}).get(key)
    if section == "QuantPost" and key in ("algo", "hist_percent"):
        _calibration(key, values, problems, notes)
    elif implied is not None:
        value = values.pop(key)
        if value in implied:
            notes.append(f"{path}: {shown(value)} is what is done here anyway; the key can be removed")
        else:
            problems.add(path, f"{shown(value)} has no counterpart; allowed: {shown(implied[0])}, or leave it out")
    elif key in _REFUSED_FIELDS.get(section, {}):
        del values[key]
        problems.add(path, f"a field of PaddleSlim ACT that does not carry over: {_REFUSED_FIELDS[section][key]}")


def _calibration(key: str, values: Tree, problems: Problems, notes: list[str]) -> None:
    path, given = f"QuantPost.{key}", values.pop(key)
    target = "percentile"
    value: str | float | None = None
    if key == "algo":
        target, value = "calibration", _ALGORITHMS.get(given) if isinstance(given, str) else None
    elif isinstance(given, int | float) and 0.5 < given <= 1:
        value = 100 * given
    if value is None:
        known = "0.5 to 1" if key == "hist_percent" else ", ".join(_ALGORITHMS)
        problems.add(path, f"{shown(given)} has no counterpart; known: {known}; or write {target}")
    elif target in values:
        problems.add(path, f"is given as {target} as well; keep one of them")
    else:
        values[target] = value
        notes.append(f"{path}: {shown(given)} is read as {target}: {value}")


def _op_types(path: str, value: Any, problems: Problems, notes: list[str]) -> Any:
    if not isinstance(value, list):
        return value
    result: list[Any] = []
    for item in value:
        mapped = _OP_TYPES.get(item, [item]) if isinstance(item, str) else [item]
        if mapped != [item]:
            notes.append(f"{path}: ACT's {item} is read as {' and '.join(mapped)}")
        result += [name for name in mapped if name not in result]
    return result


def _nodes(path: str, value: Any, problems: Problems, notes: list[str]) -> Any:
    for item in _texts(value):
        if _PADDLE_NAME.fullmatch(item):
            problems.add(
                path,
                f"{item!r} is a Paddle variable name; write module names such as blocks.11 "
                "(list them: vitcompress nodes MODEL), or auto",
            )
    return value


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


_Mapper = Callable[[str, Any, Problems, list[str]], Any]
_VALUES: dict[str, dict[str, _Mapper]] = {
    "QuantAware": {"quantize_op_types": _op_types},
    "QuantPost": {"quantize_op_types": _op_types},
    "Distillation": {"node": _nodes},
}
