"""Models from a recipe: a timm name with plain keyword values, and a local checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from act.errors import ActError, InputError
from act.hub_reach import offline_if_unreachable
from act.recipe.check import FORBIDDEN_KWARGS, unknown_model
from act.recipe.schema import ModelConfig
from act.run.reading import check_header
from act.torch_attention import with_layers

# In eval mode nn.TransformerEncoderLayer and nn.MultiheadAttention would take fused code that reads the weights of
# their layers and never calls them: masks, quantisers and hooks would do nothing, and the products not be counted.
torch.backends.mha.set_fastpath_enabled(False)

_WRAPPERS = ("model", "state_dict", "module", "model_state_dict")


def load_model(cfg: ModelConfig) -> nn.Module:
    """The model in eval mode, on the CPU, in float32; InputError when the name or the checkpoint does not fit."""
    import timm

    if cfg.name is None:
        raise InputError("model.name: missing; write a timm model name, e.g. deit_tiny_patch16_224")
    if (problem := unknown_model(cfg.name)) is not None:
        raise InputError(f"model.name: {problem}")
    forbidden = [key for key in cfg.kwargs if key.startswith(FORBIDDEN_KWARGS)]
    if forbidden:
        raise InputError(f"model.kwargs.{forbidden[0]}: would read another file; write model.checkpoint")
    state = None if cfg.checkpoint is None else read_checkpoint(Path(cfg.checkpoint))
    kwargs: dict[str, Any] = dict(cfg.kwargs)
    classes = cfg.num_classes if cfg.num_classes is not None else _classes_of(cfg.name, state)
    if classes is not None:
        kwargs["num_classes"] = classes
    try:
        fetched = cfg.pretrained and state is None
        with offline_if_unreachable() if fetched else nullcontext():
            model: nn.Module = timm.create_model(cfg.name, pretrained=fetched, **kwargs)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise InputError(f"model.kwargs: timm cannot build {cfg.name} with {kwargs}: {_first_line(error)}") from error
    except OSError as error:
        raise InputError(
            f"model.pretrained: the weights of {cfg.name} could not be fetched ({_first_line(error)}); "
            "give model.checkpoint a local file"
        ) from error
    if state is not None:
        load_strictly(model, state, cfg.checkpoint or "")
    return with_layers(model).eval()


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors or a torch file (weights_only: a pickle that runs code is refused)."""
    if not path.is_file():
        raise InputError(f"model.checkpoint: {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            check_header(path)
            loaded: Any = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it says nothing that a refusal does not
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise many types; whatever it is, the file is the problem
        # What torch says of such a file is how to open it all the same.
        reason = _first_line(error) if path.suffix == ".safetensors" else "damaged, or holds more than plain tensors"
        raise InputError(
            f"model.checkpoint: {path}: not a readable checkpoint ({reason}); allowed: .safetensors, or a torch file "
            "of plain tensors (a pickle of anything else could run code, and is not opened)"
        ) from error
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(
            f"model.checkpoint: {path}: holds no mapping of names to tensors; save model.state_dict(), as .safetensors"
        )
    return {str(key).removeprefix("module."): value for key, value in loaded.items()}


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load `state` into `model`; InputError listing the first tensors that are missing, left over, misshapen, of
    another kind, or not finite."""
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    problems = []
    for label, keys in (("lacks", missing), ("has unknown", extra)):
        if keys:
            problems.append(f"{label} {len(keys)} tensors ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})")
    for key in shapes[:3]:
        problems.append(f"{key} is {list(state[key].shape)}, the model wants {list(own[key].shape)}")
    for key in (key for key in own if key in state):
        if state[key].is_floating_point() != own[key].is_floating_point():
            problems.append(f"{key} is {state[key].dtype}, the model wants {own[key].dtype}")
        elif own[key].is_floating_point() and not bool(state[key].isfinite().all()) and bool(own[key].isfinite().all()):
            problems.append(f"{key} has NaN or infinite values")
    if problems:
        raise InputError(
            f"model.checkpoint: {where}: does not fit the model: {'; '.join(problems[:5])}; "
            "check model.name, model.num_classes and model.kwargs"
        )
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()})


@contextmanager
def taking(input_size: Sequence[int]) -> Iterator[None]:
    """Whatever a model's forward raises inside becomes an InputError: it cannot take images of `input_size`."""
    try:
        yield
    except ActError:
        raise
    except Exception as error:  # the model is the user's; whatever its forward raises, the images do not fit it
        reason = _first_line(error)
        raise InputError(f"model: cannot take images of {list(input_size)}: {reason}; check data.input_size") from error


def logits(output: Any) -> Tensor:
    """Class logits [B, classes] of a model's output: a tensor, a tuple (distilled heads are averaged) or a dict."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        for key in ("logits", "output", "out"):
            if isinstance(output.get(key), Tensor):
                return output[key]  # type: ignore[no-any-return]
    if isinstance(output, tuple | list) and output and all(isinstance(part, Tensor) for part in output):
        first: Tensor = output[0]
        same = [part for part in output if part.shape == first.shape]
        return torch.stack(same).mean(0) if len(same) == len(output) else first
    raise InputError(
        f"model: its forward returns {type(output).__name__}; allowed: a tensor of class logits, a tuple of such, "
        "or a dict with the key 'logits'"
    )


def _classes_of(name: str, state: Mapping[str, Tensor] | None) -> int | None:
    import timm

    if state is None:
        return None
    default = timm.models.get_pretrained_cfg(name)
    classifier = getattr(default, "classifier", None) or "head"
    names = [classifier] if isinstance(classifier, str) else list(classifier)
    weight = state.get(f"{names[0]}.weight")
    return None if weight is None else int(weight.shape[0])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
