"""A compressed torch model on disk: `arch.json` (base model and edits) and `model.safetensors` (every tensor).

Rebuilding applies the edits to a fresh base model and loads the tensors, which gives the same model bit for bit.
`model.packed.safetensors` may take the place of the tensors: the model then has other weights behind its quantisers,
the codes times their scales, and the same effective weights bit for bit.
Nothing is pickled: both files are data, read with checks, and safe to take from a stranger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from act.adopt import ready
from act.edits import apply_edit
from act.errors import InputError
from act.models import load_model
from act.recipe.check import FORBIDDEN_KWARGS
from act.recipe.schema import ModelConfig
from act.run.atomic import replacing, write_json
from act.run.reading import check_contained, check_header, read_json
from act.storage.file import PACKED_FILE, PackedFile, read_packed

SCHEMA = 1
ARCH_FILE, TENSOR_FILE = "arch.json", "model.safetensors"
_PLAIN = (bool, int, float, str, type(None))


def save_model(
    folder: str | Path, model: nn.Module, source: Mapping[str, Any] | None, edits: Iterable[Mapping[str, Any]]
) -> None:
    """Write `arch.json` and `model.safetensors` into `folder`, each atomically.

    `source` names the base model as `name`, `kwargs` and `num_classes` (further keys are kept for the reader); None,
    or a source without a name, means that the base model has to be given when the folder is loaded. `edits` are the
    applied edits in order. Tensors that share memory are stored once.
    """
    tensors, shared = unique_tensors(model.state_dict())
    base = dict(source) if source and source.get("name") else None
    arch = {"schema": SCHEMA, "base": base, "edits": [dict(edit) for edit in edits], "shared": shared}
    path = Path(folder)
    with replacing(path / TENSOR_FILE) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(path / ARCH_FILE, arch)


def load_model_folder(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Rebuild the model that `save_model` wrote, in eval mode; from its packed file where that is the only one.

    `model` is a base model to edit in place; without it the one that `arch.json` names is built by timm without
    weights. InputError for files that are missing, damaged or do not belong together.
    """
    path = Path(folder)
    check_contained(path)
    if not (path / TENSOR_FILE).is_file() and (path / PACKED_FILE).is_file():
        return load_packed_model(read_packed(path / PACKED_FILE), model)
    arch = read_arch(path)
    model = _edited(arch, path, model)
    _load_tensors(model, read_tensors(path), arch["shared"], path / TENSOR_FILE)
    return model.eval()


def load_packed_model(packed: PackedFile, model: nn.Module | None = None) -> nn.Module:
    """Rebuild the model from a packed file and the `arch.json` beside it, in eval mode; `model` as above."""
    arch = read_arch(packed.path.parent)
    model = _edited(arch, packed.path.parent, model)
    own = model.state_dict()
    for layer, layout in packed.layouts.items():
        # Compared before unpacking, so that no file makes us allocate more than the model has.
        shape = own[f"{layer}.weight"].shape if f"{layer}.weight" in own else None
        if shape is None or tuple(shape) != layout.shape:
            wants = "no such layer" if shape is None else f"{list(shape)}"
            raise InputError(f"{packed.path}: {layer}: its weight is {list(layout.shape)}; the model has {wants}")
    _load_tensors(model, packed.state(), arch["shared"], packed.path)
    return model.eval()


def read_arch(folder: str | Path) -> dict[str, Any]:
    """The checked content of `arch.json`: `schema`, `base` (dict or None), `edits`, `shared`."""
    path = Path(folder) / ARCH_FILE
    try:
        arch = read_json(path)
    except InputError as error:
        raise InputError(f"{error}; name a folder that holds a compressed model") from error
    if not isinstance(arch, dict) or arch.get("schema") != SCHEMA:
        found = arch.get("schema") if isinstance(arch, dict) else type(arch).__name__
        raise InputError(f"{path}: schema {found!r}; this version reads {SCHEMA}")
    base, edits, shared = arch.get("base"), arch.get("edits"), arch.get("shared", {})
    if base is not None and not (isinstance(base, dict) and isinstance(base.get("name"), str)):
        raise InputError(f"{path}: base: must be null or an object with the name of a timm model")
    if not isinstance(edits, list) or not all(isinstance(edit, dict) for edit in edits):
        raise InputError(f"{path}: edits: must be a list of objects")
    if not isinstance(shared, dict) or not all(isinstance(name, str) for name in shared.values()):
        raise InputError(f"{path}: shared: must map names of tensors to names of tensors")
    return {"schema": SCHEMA, "base": base, "edits": edits, "shared": shared}


def read_tensors(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of `model.safetensors` by name, on the CPU; InputError if the file is missing or damaged."""
    path = Path(folder) / TENSOR_FILE
    try:
        check_header(path)
        return load_file(path)
    except InputError:
        raise
    except Exception as error:  # the reader raises types of its own; whatever it is, the file is the problem
        raise InputError(f"{path}: not a readable safetensors file: {error}") from error


def unique_tensors(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a model's state to store, and for each further name of one tensor the name it is stored under."""
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and key in seen:
            shared[name] = seen[key]
            continue
        seen[key] = name
        # A copy, since safetensors refuses views into one storage.
        tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return tensors, shared


def _edited(arch: dict[str, Any], folder: Path, model: nn.Module | None) -> nn.Module:
    """`model`, or else the base model that `arch` names, after the edits."""
    model = _base_model(arch["base"], folder / ARCH_FILE) if model is None else ready(model)
    for number, edit in enumerate(arch["edits"]):
        _apply(model, edit, f"{folder / ARCH_FILE}: edits[{number}]")
    return model


def _base_model(base: dict[str, Any] | None, where: Path) -> nn.Module:
    if base is None:
        raise InputError(f"{where}: base is null, since the model came as a module; pass that module as `model`")
    kwargs = base.get("kwargs") or {}
    if not isinstance(kwargs, dict) or not all(isinstance(key, str) and _plain(value) for key, value in kwargs.items()):
        raise InputError(f"{where}: base.kwargs: must be an object of numbers, strings, booleans and lists of these")
    for key in kwargs:
        if key.startswith(FORBIDDEN_KWARGS):
            raise InputError(f"{where}: base.kwargs.{key}: not allowed here, since it would read another file")
    classes = base.get("num_classes")
    if classes is not None and not (isinstance(classes, int) and classes >= 0):
        raise InputError(f"{where}: base.num_classes: {classes!r}; allowed: null or a whole number >= 0")
    _check_memory(base["name"], {**kwargs, **({} if classes is None else {"num_classes": classes})}, where)
    try:
        return load_model(ModelConfig(name=base["name"], num_classes=classes, kwargs=kwargs))
    except InputError as error:
        raise InputError([f"{where}: base: {problem}" for problem in error.problems]) from error


def _check_memory(name: str, kwargs: dict[str, Any], where: Path) -> None:
    """InputError if the base model would not fit into the memory that is free: a file must not fill the machine."""
    if not timm.is_model(name.partition(".")[0]):
        return  # which the loader says
    try:
        with torch.device("meta"):
            model = timm.create_model(name, **kwargs)
    except Exception:  # whatever timm cannot build, it says when it is built for use
        return
    needed = sum(tensor.nbytes for tensor in model.state_dict().values())
    free = psutil.virtual_memory().available
    if needed > free:
        sizes = f"{needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
        raise InputError(f"{where}: base: {name} with these kwargs takes {sizes}; check base.kwargs")


def _plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, list) and all(map(_plain, value)))


def _apply(model: nn.Module, edit: dict[str, Any], where: str) -> None:
    try:
        apply_edit(model, edit)
    except InputError as error:
        raise InputError([f"{where}: {problem}" for problem in error.problems]) from error
    except Exception as error:  # a hand-written edit can go wrong anywhere in the edit's own code
        raise InputError(f"{where}: {edit.get('op')!r} cannot be applied: {type(error).__name__}: {error}") from error


def _load_tensors(model: nn.Module, tensors: dict[str, Tensor], shared: Mapping[str, str], where: Path) -> None:
    """Copy every tensor into `model`; InputError unless names, shapes and types are exactly the model's."""
    unknown = [name for name in shared.values() if name not in tensors]
    if unknown:
        raise InputError(f"{where}: lacks {unknown[0]}, which {ARCH_FILE} says is shared")
    tensors = {**tensors, **{name: tensors[stored] for name, stored in shared.items()}}
    own = model.state_dict()
    problems = [f"{where}: {name}: missing" for name in own if name not in tensors]
    problems += [f"{where}: {name}: the model has no such tensor" for name in tensors if name not in own]
    for name in own.keys() & tensors.keys():
        is_, wants = _kind(tensors[name]), _kind(own[name])
        if is_ != wants:
            problems.append(f"{where}: {name}: is {is_}, the model wants {wants}")
    if problems:
        more = [f"{where}: ... {len(problems) - 5} more such tensors"] if len(problems) > 5 else []
        raise InputError(problems[:5] + more)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
