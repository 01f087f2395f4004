"""The stages of a run: prepare, recover, settle, score, check, keep."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from act.context import Context
from act.errors import ActError
from act.layers import compressed_layers
from act.plan import Stage
from act.rebuild import ARCH_FILE, TENSOR_FILE, load_model_folder, save_model
from act.run.atomic import replacing, write_json
from act.run.baseline import Baseline
from act.run.folder import DONE, RunFolder, open_stage
from act.run.keys import chain_key, data_part, train_part, weights_hash
from act.run.large_pages import large_pages
from act.run.learning import carried, learned, objectives_of, teachers_of
from act.run.memory import peak_rss_mb, reset_peak
from act.run.metrics import Scorer
from act.run.ranks import is_main, main_first, wait
from act.run.sealed import Damaged, read_sealed, write_sealed
from act.run.shared import publish
from act.run.skipped import note_skipped
from act.strategies.base import Invariant
from act.train.recover import recover
from act.train.rng import seed_everything

PREDICTIONS = "predictions.npy"
MODEL_FILES = (ARCH_FILE, TENSOR_FILE)
PREPARING, TRAINING = 1, 2  # keep apart the random numbers that a stage's two halves draw


@dataclass
class Session:
    """What every part of a run shares. `original`, frozen, is the teacher and the base to rebuild on."""

    folder: RunFolder
    ctx: Context
    original: nn.Module
    source: dict[str, Any] | None
    baseline: Baseline
    scorer: Scorer
    teachers: dict[str, list[nn.Module]] = field(default_factory=dict)  # by the hash of their sources

    def own_base(self) -> nn.Module | None:
        """A copy of a caller's module to load tensors into, since it cannot be built by its name; else None."""
        return copy.deepcopy(self.original).cpu() if self.source is None else None


@large_pages()
def run_stages(session: Session, stages: Sequence[Stage], base_key: str) -> tuple[nn.Module, list[dict[str, Any]], str]:
    """Run every stage in order, or take it from its folder.

    Returns the compressed model, the report's entries, and the key of the last stage: what the model depends on.
    """
    model = _trainable_copy(session.original, session.ctx)
    records: list[dict[str, Any]] = []
    key = base_key
    for position, stage in enumerate(stages):
        number = position + 1
        teachers = teachers_of(stage, session.original, session.ctx.device, session.teachers)
        feature_loss = carried(stage, records)
        key = chain_key(
            key,
            stage.name,
            stage.strategy.config,
            None if stage.train is None else train_part(stage.train),
            [(objective.name, objective.config) for objective in stage.objectives],
            [weights_hash(teacher) for teacher in teachers],
            data_part(session.ctx.recipe.data),
            feature_loss,
        )
        folder = session.folder.stage(number, stage.name)
        record = main_first(partial(open_stage, folder, key, session.ctx.log, session.folder.shared))
        if record is not None:
            session.ctx.log("stage", f"[{number}/{len(stages)}] {stage.name}: done before, kept", name=stage.name)
            records.append(record["report"])
            # A later stage starts from these weights; one that is done as well replaces them.
            model = _load(session, folder)
            if is_main():
                _drop_intermediate(folder)  # a kill right after the stage may have left it
                publish(folder, key, session.folder.shared)
            continue
        runner = StageRun(session, stage, folder, number, teachers, feature_loss)
        session.ctx.log("stage", f"[{number}/{len(stages)}] {stage.name}", name=stage.name)
        model, report = runner.run(model, stages[: position + 1])
        if is_main():
            save_model(folder, model, session.source, session.ctx.edits)
            write_json(folder / "metrics.json", report)
            kept = [*MODEL_FILES, "metrics.json", *([PREDICTIONS] if (folder / PREDICTIONS).is_file() else [])]
            write_sealed(folder / DONE, {"key": key, "report": report, "flags": training_flags(model)}, kept)
            _drop_intermediate(folder)
            publish(folder, key, session.folder.shared)
            note_skipped(session.ctx)
        wait()
        records.append(report)
    return model, records, key


@dataclass
class StageRun:
    """One stage that has to be computed."""

    session: Session
    stage: Stage
    folder: Path
    number: int
    teachers: list[nn.Module]
    feature_loss: Mapping[str, float] | None  # by layer, of the stage that these layers' weights come from

    def run(self, model: nn.Module, so_far: Sequence[Stage]) -> tuple[nn.Module, dict[str, Any]]:
        """The stage's model and its report entry."""
        ctx, strategy = self.session.ctx, self.stage.strategy
        started = time.monotonic()
        reset_peak()
        plan = strategy.select(model, ctx)
        model = self.prepared(model)
        plan = strategy.settled(model, plan)
        for layer in plan.left:
            ctx.log("layer_left", name=layer.name, reason=layer.reason, stage=self.stage.name)
        ctx.log("layers", f"  {len(plan.done)} layers, {len(plan.left)} left as they are", stage=self.stage.name)
        steps, seconds, features = self.train(model)
        strategy.finalize(model, ctx)
        figures: dict[str, float] = {}
        predictions = None
        if is_main():
            figures, predictions = self.session.scorer.scored(model, self.session.baseline)
        if predictions is not None:
            with replacing(self.folder / PREDICTIONS) as temporary:
                np.save(temporary, predictions)
        promises = check_promises(model, so_far)
        report = {
            "name": self.stage.name,
            "seconds": round(seconds + time.monotonic() - started, 2),
            "peak_rss_mb": round(peak_rss_mb(), 1),
            **figures,
            "steps": steps,
            "layers_done": list(plan.done),
            "layers_left": [
                {"name": layer.name, "reason": layer.reason} for layer in plan.left + strategy.partly_done(model, ctx)
            ],
            "invariants": promises,
            **features,
            **strategy.facts(ctx),
        }
        if remarks := strategy.remarks():
            report["remarks"] = remarks
        scores = "".join(f", {name} {value:.2f}" for name, value in figures.items())
        ctx.log("stage_done", f"  {self.stage.name}: {report['seconds']:.0f} s{scores}", **report)
        return model, report

    def prepared(self, model: nn.Module) -> nn.Module:
        """The model in its compressed form before training, from `prepared/` when an earlier try got that far."""
        ctx, kept = self.session.ctx, self.folder / "prepared"

        def prepare() -> nn.Module:
            try:
                if read_sealed(kept / DONE) is not None:
                    ctx.log("prepared", "  prepared before, kept", stage=self.stage.name)
                    return _load(self.session, kept)
            except Damaged as damage:
                ctx.log("warning", f"{damage}; prepared again")
            seed_everything(ctx.recipe.seed, self.number, PREPARING)
            self.stage.strategy.prepare(model, ctx)
            save_model(kept, model, self.session.source, ctx.edits)
            write_sealed(kept / DONE, {"flags": training_flags(model)}, MODEL_FILES)
            return model

        return main_first(prepare)

    def train(self, model: nn.Module) -> tuple[int, float, dict[str, Any]]:
        """Recovery training; optimiser steps done, seconds spent on it by earlier, interrupted tries, and what the
        report says of the pace and of the distilled features."""
        ctx, cfg = self.session.ctx, self.stage.train
        if cfg is None:
            return 0, 0.0, {}
        objectives = objectives_of(self.stage, model, self.teachers, ctx, self.feature_loss)
        seed_everything(ctx.recipe.seed, self.number, TRAINING)
        score = self.session.scorer.metric(cfg, self.session.baseline)
        started = time.monotonic()
        try:
            result = recover(model, self.stage.strategy, objectives, cfg, ctx, self.folder / "state", score)
        finally:
            for objective in objectives:
                objective.close()
        before = max(0.0, result.seconds - (time.monotonic() - started))
        pace: dict[str, Any] = {"images_per_second": round(result.images_per_second, 2)}
        if ctx.data is not None and ctx.data.train_images:
            pace["epochs"] = round(result.images / ctx.data.train_images, 3)
        if result.step_seconds:
            pace["step_seconds"] = {part: round(seconds, 4) for part, seconds in result.step_seconds.items()}
        return result.steps, before, pace | learned(objectives, result.losses)


def check_promises(model: nn.Module, stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Every invariant of these stages as report entries; ActError naming the first layers where one is broken."""
    found: list[tuple[str, Invariant]] = [
        (stage.name, item) for stage in stages for item in stage.strategy.invariants(model)
    ]
    broken = [f"{item.name} (promised by {name}): {item.detail}" for name, item in found if not item.holds]
    if broken:
        raise ActError(f"after {stages[-1].name}, what must hold does not: {'; '.join(broken)}")
    return [{"name": item.name, "holds": item.holds, "detail": item.detail} for _, item in found]


def _drop_intermediate(folder: Path) -> None:
    """Remove the tensors that only an interrupted stage needs; a large model would be kept three times."""
    shutil.rmtree(folder / "prepared", ignore_errors=True)
    for path in (*(folder / "state").glob("step-*"), *(folder / "state").glob("best-*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _trainable_copy(original: nn.Module, ctx: Context) -> nn.Module:
    model = copy.deepcopy(original).to(ctx.device)
    return model.requires_grad_(True)


def training_flags(model: nn.Module) -> dict[str, Any]:
    """What of a compressed model in training is neither structure nor tensor: how masks train, what is frozen."""
    return {
        "masks": {name: layer.straight_through for name, layer in compressed_layers(model)},
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
    }


def _load(session: Session, folder: Path) -> nn.Module:
    """The model kept in `folder`, ready to go on; the context's record of edits becomes the one kept there."""
    model = load_model_folder(folder, _trainable_copy(session.original, session.ctx))
    session.ctx.edits[:] = json.loads((folder / "arch.json").read_text(encoding="utf-8"))["edits"]
    flags = json.loads((folder / DONE).read_text(encoding="utf-8"))["flags"]
    for name, layer in compressed_layers(model):
        layer.straight_through = flags["masks"][name]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in flags["frozen"])
    return model.to(session.ctx.device)
