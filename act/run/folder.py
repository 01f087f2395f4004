"""The run folder: its layout, its lock, and whether it belongs to the recipe at hand."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act.errors import InputError
from act.recipe.dump import recipe_to_dict
from act.run.atomic import PARTIAL, remove_partial, write_json, write_text
from act.run.environment import VERSIONS, describe
from act.run.lock import LOCK, held
from act.run.sealed import Damaged, read_sealed
from act.run.shared import adopt, withdraw

if TYPE_CHECKING:
    from act.context import Log
    from act.recipe.schema import Recipe

SETTINGS, INPUTS, ENVIRONMENT = "settings.json", "inputs.json", "environment.json"
DONE = "done.json"
NO_MATTER = ("name", "description", "results")


class RunFolder:
    """`DIR` with recipe.yaml, environment.json, events.jsonl, baseline/, stages/NN-name/ and artifact/.

    `shared` is a folder in which several runs keep what they have in common, see act/run/shared.py.
    """

    def __init__(self, path: str | Path, shared: Path | None = None) -> None:
        self.path = Path(path)
        self.shared = shared

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def baseline(self) -> Path:
        return self.path / "baseline"

    @property
    def artifact(self) -> Path:
        return self.path / "artifact"

    def stage(self, index: int, name: str) -> Path:
        """The folder of a stage; `index` counts from 1."""
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", "-", name).lower()
        return self.path / "stages" / f"{index:02d}-{words}"

    @contextlib.contextmanager
    def locked(self) -> Iterator[str | None]:
        """Hold the folder for this process, see `act.run.lock.held`.

        When what follows fails before `claim`, the folder is left as it was found.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        with held(self.path) as left:
            try:
                yield left
            except BaseException:
                if not (self.path / SETTINGS).exists():
                    self._withdraw(made)
                raise

    def _withdraw(self, made: Sequence[Path]) -> None:
        """Remove the lock, and the folders that were made for it, the innermost first."""
        (self.path / LOCK).unlink(missing_ok=True)
        for folder in made:
            with contextlib.suppress(OSError):  # another process has begun to use it
                folder.rmdir()

    def claim(
        self,
        recipe: Recipe,
        text: str,
        inputs: Mapping[str, str] | None = None,
        force: bool = False,
        may_change: Sequence[str] = (),
    ) -> list[str]:
        """Make the folder this recipe's; returns what is worth saying about it.

        `text` is the resolved recipe as YAML; `inputs` are content hashes, of the model's weights as `model` and of
        data.train, data.val and data.calibration. Stages whose own inputs did not change are used again whatever else
        did; `may_change` names sections of the recipe that may differ.

        Raises:
            InputError: the folder holds a run of another recipe, model or data, and `force` is not given; the message
                names what differs. Or it has files and no run.
        """
        settings, inputs, environment = comparable(recipe), dict(inputs or {}), describe()
        previous = self._previous(force)
        strange = [item.name for item in self._items() if item.name != LOCK and not item.name.startswith(PARTIAL)]
        if previous is None and strange:
            raise InputError(
                f"--dir: {self.path} has files but no run of vitcompress in it; choose an empty or a new folder"
            )
        notes = []
        changed = "" if previous is None else self._changed(previous, settings, inputs, may_change)
        if changed and not force:
            raise InputError(
                f"--dir: {self.path} holds a run of {changed}; choose another --dir, or give --force to `vitcompress "
                "run` to keep finished stages whose inputs are the same and replace the rest"
            )
        if changed:
            notes.append(f"--force: {self.path} held a run of {changed}; stages whose inputs are the same are kept")
        versions = differences(
            {key: value for key, value in _read(self.path / ENVIRONMENT).items() if key in VERSIONS},
            {key: environment[key] for key in VERSIONS},
        )
        if versions and (self.path / ENVIRONMENT).is_file():
            notes.append(f"since the last run in {self.path}, {versions}: what it left is kept, and results may differ")
        remove_partial(self.path)
        # The settings come first: they are what marks the folder as a run, should the process die in between.
        write_json(self.path / SETTINGS, settings)
        write_json(self.path / INPUTS, inputs)
        write_text(self.path / "recipe.yaml", text)
        write_json(self.path / ENVIRONMENT, environment)
        return notes

    def _changed(
        self, previous: Mapping[str, Any], settings: Mapping[str, Any], inputs: Mapping[str, str], free: Sequence[str]
    ) -> str:
        """In words, what of recipe, model and data is not what the folder's run has; empty when all of it is."""
        old, new = ({key: value for key, value in part.items() if key not in free} for part in (previous, settings))
        before = _read(self.path / INPUTS)
        other = [key for key in sorted({*before, *inputs}) if before and before.get(key) != inputs.get(key)]
        found = [f"another recipe ({text})" for text in [differences(old, new)] if text]
        found += ["another model (its weights differ)"] if "model" in other else []
        images = [key for key in other if key != "model"]
        found += [f"other data ({', '.join(images)}: names, sizes, labels or contents differ)"] if images else []
        return " and of ".join(found)

    def _items(self) -> list[Path]:
        return list(self.path.iterdir()) if self.path.is_dir() else []

    def _previous(self, force: bool) -> dict[str, Any] | None:
        file = self.path / SETTINGS
        if not file.is_file():
            return None
        found = _read(file)
        if not found and not force:
            raise InputError(
                f"--dir: {file} is damaged; choose another folder, or give --force to go on with this recipe there"
            )
        return found


def open_stage(folder: Path, key: str, log: Log, shared: Path | None = None) -> dict[str, Any] | None:
    """Open a stage's folder for the inputs hashed in `key`.

    Returns the stage's record when it is finished, here or in `shared` by another run. Otherwise the folder exists
    afterwards and holds nothing but what an interrupted run with the same key left there; results that are damaged or
    of other inputs are removed, which `log` is told of.
    """
    if _read(folder / "key.json").get("key") != key:
        if (folder / "key.json").is_file():
            log("warning", f"{folder}: what it holds belongs to other inputs; it is removed and computed anew")
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / "key.json", {"key": key})
    done = _done(folder, key, log)
    if done is None and adopt(folder, key, shared):
        done = _done(folder, key, log)
        if done is None:  # damaged: the next to finish offers its own
            withdraw(key, shared)
    return done


def _done(folder: Path, key: str, log: Log) -> dict[str, Any] | None:
    try:
        done = read_sealed(folder / DONE)
    except Damaged as damage:
        log("warning", f"{damage}; the results in its folder are removed and computed anew")
        shutil.rmtree(folder)
        write_json(folder / "key.json", {"key": key})
        return None
    return done if done is not None and done.get("key") == key else None


def comparable(recipe: Recipe) -> dict[str, Any]:
    """The settings that make two recipes different: everything but name, description and measured results."""
    return {key: value for key, value in recipe_to_dict(recipe).items() if key not in NO_MATTER}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], limit: int = 5) -> str:
    """`key: old -> new` for the first settings that differ between two nested mappings."""
    before, after = dict(_flat(old)), dict(_flat(new))
    keys = [key for key in sorted({*before, *after}) if before.get(key, "unset") != after.get(key, "unset")]
    shown = [f"{key}: {before.get(key, 'unset')} -> {after.get(key, 'unset')}" for key in keys[:limit]]
    return "; ".join(shown) + (f"; and {len(keys) - limit} more" if len(keys) > limit else "")


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
