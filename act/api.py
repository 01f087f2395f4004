"""The Python interface: the same run as the command's, with the caller's own model, loaders and metric."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from act.data.bundle import DataBundle
from act.errors import InputError
from act.rebuild import load_model_folder
from act.recipe.load import load_recipe, recipe_from_dict
from act.recipe.schema import Recipe
from act.run.result import RunResult
from act.run.runner import run

CHECKPOINTS = (".safetensors", ".pth", ".pt", ".bin", ".tar")


class AutoCompression:
    """Compress a model as a recipe says.

    Args:
        model: an `nn.Module` (left unchanged), a timm model name, or the path of a checkpoint for the recipe's
            `model.name`; None: the recipe's own model.
        config: path or name of a recipe, a mapping shaped like the YAML, or a `Recipe`.
        train_dataloader: re-iterable of batches that are tensors, tuples or dicts, normalised, labels optional; used
            for calibration and recovery training instead of `data.train`.
        eval_dataloader: the same for scoring, in a fixed order; instead of `data.val`.
        eval_callback: `callback(model) -> float`, the metric that goals go by; it also scores the exported file.
        save_dir: the run folder; default `runs/<recipe name>`. An interrupted run in it is continued.
        force: take over a folder that holds a run of another recipe.

    Raises:
        InputError: a model, recipe or loader that cannot be used.
    """

    def __init__(
        self,
        model: nn.Module | str | Path | None = None,
        config: str | Path | Mapping[str, Any] | Recipe = "quickstart",
        *,
        train_dataloader: Iterable[object] | None = None,
        eval_dataloader: Iterable[object] | None = None,
        eval_callback: Callable[[nn.Module], float] | None = None,
        save_dir: str | Path | None = None,
        force: bool = False,
    ) -> None:
        self.recipe = _recipe(config)
        self.model = self._model(model)
        self.data = self._data(train_dataloader, eval_dataloader)
        if eval_callback is not None and not callable(eval_callback):
            raise InputError(f"eval_callback: {type(eval_callback).__name__}; pass a function of a model to a number")
        self.eval_callback = eval_callback
        self.save_dir = Path(save_dir) if save_dir is not None else Path("runs") / self.recipe.name
        self.force = force

    def compress(self) -> RunResult:
        """Run the recipe; see `act.run.runner.run` for what it raises.

        Progress is printed to stderr, with the time that is left, see `act.verbosity`; a notebook shows the result as a
        table.
        """
        return run(self.recipe, self.save_dir, self.model, self.data, self.eval_callback, self.force)

    def _model(self, model: nn.Module | str | Path | None) -> nn.Module | None:
        if model is None or isinstance(model, nn.Module):
            return model
        if not isinstance(model, str | Path):
            raise InputError(
                f"model: {_kind(model)}; pass an nn.Module, a timm model name, the path of a checkpoint, or None for "
                "the recipe's own"
            )
        if isinstance(model, Path) or Path(model).suffix in CHECKPOINTS:
            self.recipe.model.checkpoint = str(model)
        else:
            # Another architecture: the recipe's checkpoint belongs to the one it names.
            if model != self.recipe.model.name:
                self.recipe.model.checkpoint = None
            self.recipe.model.name = model
        return None

    def _data(self, train: Iterable[object] | None, val: Iterable[object] | None) -> DataBundle | None:
        if train is None and val is None:
            return None
        data = self.recipe.data
        given = {"train": (train, "train_dataloader"), "val": (val, "eval_dataloader")}
        problems = [
            f"{name}: missing, and data.{key} of the recipe is not read when another loader is given; pass {name}, or "
            f"leave data.{key} out of the recipe"
            for key, (loader, name) in given.items()
            if loader is None and getattr(data, key) is not None
        ]
        if problems:
            raise InputError(problems)
        # What the recipe says of files is not read, so it must not stand in the frozen recipe either.
        data.train = data.val = data.calibration = None
        return DataBundle.from_loaders(train, val)


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The compressed torch model of a run's `artifact` folder (or of the run folder), bit for bit, in eval mode.

    `model` is the original, needed when it came as an `nn.Module`. InputError when the folder holds no such model.
    """
    path = Path(folder)
    inner = path / "artifact"
    return load_model_folder(inner if (inner / "arch.json").is_file() else path, model)


def _recipe(config: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
    if isinstance(config, Recipe):
        return copy.deepcopy(config)
    if not isinstance(config, Mapping | str | Path):
        raise InputError(
            f"config: {_kind(config)}; pass the path or name of a recipe, a mapping shaped like one, or a Recipe"
        )
    return recipe_from_dict(config) if isinstance(config, Mapping) else load_recipe(config)


def _kind(value: object) -> str:
    """What was passed, for messages; a class is often its instance forgotten."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
