"""A run from recipe to report; see `run`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from act.adopt import adopted, remarks
from act.automatic import choose_strategies
from act.context import Context
from act.data.bundle import DataBundle
from act.data.preprocess import Preprocess, resolve_preprocess
from act.errors import InputError, StorageError
from act.models import load_model, logits, taking
from act.plan import Stage, build_stages
from act.recipe.load import dump_recipe, recipe_hash
from act.run.attempts import Attempt, attempt_folder, back_off, keep_best, start_attempt
from act.run.baseline import Baseline, measure_baseline
from act.run.deliver import deliver, delivered_before, mark_delivered, seal
from act.run.faults import as_fault
from act.run.folder import RunFolder
from act.run.goals import EXIT_CODES, check_measurable, judge, judged
from act.run.keys import chain_key, data_part, weights_hash
from act.run.learning import teachers_of
from act.run.log import EventLog
from act.run.metrics import Callback, Scorer
from act.run.per_layer import layer_figures
from act.run.ranks import is_main, main_first, state, wait
from act.run.report import build_report, measured, read_report, write_report
from act.run.result import RunResult
from act.run.skipped import note_skipped
from act.run.stages import Session, run_stages
from act.selection import unmatched_globs
from act.strategies.base import Phase

if TYPE_CHECKING:
    from act.recipe.schema import Recipe


def run(
    recipe: Recipe,
    folder: str | Path,
    model: nn.Module | None = None,
    data: DataBundle | None = None,
    eval_callback: Callback | None = None,
    force: bool = False,
    shared: Path | None = None,
    may_change: Sequence[str] = (),
) -> RunResult:
    """Compress, export, verify and report; results go to `folder`, where an interrupted run is continued.

    `model` (left unchanged) and `data` take the place of the recipe's; `eval_callback(model) -> float` is the
    caller's own metric, which goals then go by. `force` takes over a folder of another recipe, model or data: stages
    whose inputs are the same are kept, the others computed anew; without it only the sections `may_change` of the
    recipe may differ from those of the folder. Several runs with the same folder `shared` measure their original once,
    and compute a stage that they have in common once.

    Raises:
        InputError: the recipe, the model, the data or the folder cannot be used.
        ActError: something promised does not hold, training diverged, the exported file is wrong, or memory, a disk, a
            worker or a GPU failed.
    """
    target = RunFolder(folder, shared)
    with target.locked() if is_main() else nullcontext() as left:
        original = _frozen(model, recipe)
        preprocess = resolve_preprocess(original, recipe.data)
        data = data if data is not None else _data(recipe, preprocess)
        chosen = choose_strategies(recipe, original, data, _input_size(data, preprocess))
        recipe = recipe if chosen is None else chosen.recipe
        stages = build_stages(recipe)
        has_val, labelled = (data.has_val, data.val_labelled) if data is not None else (False, False)
        check_measurable(recipe, has_val, eval_callback is not None, labelled)
        ctx = Context(recipe, _input_size(data, preprocess), data, state().device)
        check_head(original, ctx)
        _check_training(stages, data)
        check_layers(stages, original, ctx)
        inputs = {"model": weights_hash(original)} | (data.fingerprints() if data is not None else {})
        text = dump_recipe(recipe)
        notes = main_first(lambda: target.claim(recipe, text, inputs, force, may_change) if is_main() else [])
        ctx.log = EventLog(target.events, main=is_main())
        for note in [*([left] if left is not None else []), *notes]:
            ctx.log("warning", note)
        for reason in chosen.reasons if chosen is not None else []:
            ctx.log("chosen", f"chosen: {reason}")
        try:
            started = _Run(recipe, target, ctx, original, model, preprocess, eval_callback, inputs["model"])
            return started.result(stages)
        except BaseException as error:
            fault = as_fault(error)
            with suppress(StorageError):  # the disk may be what failed
                ctx.log("error", type=type(fault).__name__, text=str(fault))
            if fault is error:
                raise
            raise fault from error


@dataclasses.dataclass
class _Run:
    recipe: Recipe
    folder: RunFolder
    ctx: Context
    original: nn.Module
    given: nn.Module | None  # the caller's
    preprocess: Preprocess
    callback: Callback | None
    weights: str  # hash of the original's

    def result(self, stages: list[Stage]) -> RunResult:
        """Everything after the checks of the input."""
        recipe, ctx, folder = self.recipe, self.ctx, self.folder
        names = [stage.name for stage in stages]
        ctx.log("run", f"{recipe.name} in {folder.path}", recipe_hash=recipe_hash(recipe), stages=names)
        for remark in remarks(self.given, self.original):
            ctx.log("model", f"model: {remark}")
        notes = list(ctx.data.notes) if ctx.data is not None else []
        for note in notes + [remark for stage in stages for remark in stage.strategy.remarks()]:
            ctx.log("warning", note)
        fingerprint = ctx.data.fingerprint() if ctx.data is not None else None
        baseline, scorer = self.baseline(fingerprint)
        session = Session(folder, ctx, self.original, self.source(), baseline, scorer)
        base_key = chain_key(self.weights, fingerprint, self.preprocess, recipe.seed)
        taught = [teachers_of(stage, self.original, ctx.device, session.teachers) for stage in stages]
        hashes = [[weights_hash(teacher) for teacher in teachers] for teachers in taught]
        settings = (recipe.strategies, recipe.train, data_part(recipe.data), recipe.export, recipe.target, told(recipe))
        everything = chain_key("attempts", base_key, *settings, hashes, self.callback is not None)
        report = read_report(folder)
        if report is None or not delivered_before(folder, everything):
            report = self.attempts(session, stages, base_key, everything)
        else:
            ctx.log("run", "finished before, nothing to do")
        status = str(report["status"])
        ctx.log("result", f"{status}: {folder.path / 'report.html'}", status=status)
        return RunResult(status, EXIT_CODES[status], folder.path, report)

    def attempts(self, session: Session, stages: list[Stage], base_key: str, everything: str) -> dict[str, Any]:
        """The recipe, then milder ones until accuracy is what the target asks for; the report of the best."""
        tried = [Attempt(self.recipe, "as the recipe says", self.attempt(session, stages, base_key))]
        previous = self.folder
        metric = session.scorer.main_metric(self.recipe.train)
        while len(tried) < self.recipe.target.attempts:
            last = tried[-1]
            found = back_off(last, build_stages(last.recipe), metric, self.original, self.ctx)
            if found is None:
                break
            recipe, reason = found
            number = len(tried) + 1
            self.ctx.log("attempt", f"attempt {number}: too much accuracy was lost; {reason}", reason=reason)
            following = attempt_folder(self.folder, number)
            main_first(lambda a=previous, b=following: start_attempt(a, b) if is_main() else None)  # type: ignore[misc]
            ctx = dataclasses.replace(self.ctx, recipe=recipe, edits=[])
            run = dataclasses.replace(self, recipe=recipe, folder=following, ctx=ctx)
            inner = dataclasses.replace(session, folder=following, ctx=ctx)
            tried.append(Attempt(recipe, reason, run.attempt(inner, build_stages(recipe), base_key)))
            previous = following
        wait()
        if len(tried) > 1 and is_main():
            keep_best(self.folder, tried, everything)
        wait()
        report = read_report(self.folder)
        assert report is not None
        return report

    def attempt(self, session: Session, stages: list[Stage], base_key: str) -> dict[str, Any]:
        """Every stage and the files of one recipe, or what is left of them; the report."""
        model, records, key = run_stages(session, stages, base_key)
        judged_by = (session.scorer.main_metric(self.recipe.train), self.recipe.train.metric_mode)
        key = chain_key(
            key, self.recipe.export, self.recipe.target, told(self.recipe), *judged_by, self.callback is not None
        )
        report = read_report(self.folder)
        if report is None or not delivered_before(self.folder, key):
            wait()
            if is_main():
                self.deliver(session, model, stages, records, key)
            wait()
            report = read_report(self.folder)
        assert report is not None
        return report

    def source(self) -> dict[str, Any] | None:
        """What arch.json says of the base model; None for a caller's module, which they have to bring again."""
        if self.given is not None:
            return None
        cfg = self.recipe.model
        classes = cfg.num_classes if cfg.num_classes is not None else getattr(self.original, "num_classes", None)
        return {"name": cfg.name, "num_classes": classes, "kwargs": dict(cfg.kwargs)}

    def baseline(self, fingerprint: str | None) -> tuple[Baseline, Scorer]:
        """The original's figures, checked against what the recipe says they must be."""
        ctx, train = self.ctx, self.recipe.train
        # `order` is over the first image of every batch.
        settings = (ctx.input_size, self.recipe.data.limit_val, self.recipe.data.batch_size, self.recipe.export.opset)
        key = chain_key(self.weights, fingerprint, self.preprocess, *settings)
        scorer = Scorer(ctx.data, self.recipe.data.batch_size, self.callback, train.metric or "metric")
        baseline = main_first(
            lambda: measure_baseline(self.original, self.folder.baseline, key, ctx, self.folder.shared)
        )
        if self.callback is not None:
            own = {scorer.name: scorer.own(self.original)}
            baseline = dataclasses.replace(baseline, figures=baseline.figures | own)
        name = scorer.main_metric(train)
        value = baseline.figures.get(name)
        if train.origin_metric is not None:
            if value is None:
                raise InputError(f"TrainConfig.origin_metric: {name} of the original needs labels in data.val")
            if abs(value - train.origin_metric) > train.origin_tolerance:
                raise InputError(
                    f"TrainConfig.origin_metric: the original scores {name} {value:.2f}, not {train.origin_metric:g} "
                    f"(+-{train.origin_tolerance:g}); check model.checkpoint, data.class_map and the preprocessing"
                )
        shown = "" if value is None else f"{name} {value:.2f}, "
        figures = baseline.figures
        ctx.log(
            "baseline",
            f"original: {shown}{figures['params'] / 1e6:.2f} M parameters, {figures['macs'] / 1e6:.0f} M MACs, "
            f"{figures['bytes'] / 1e6:.2f} MB as ONNX",
            **figures,
        )
        return baseline, scorer

    def deliver(
        self, session: Session, model: nn.Module, stages: list[Stage], records: list[dict[str, Any]], key: str
    ) -> dict[str, Any]:
        """Export, check, time, judge, and write both reports."""
        baseline, artifacts = deliver(session, model, stages, self.preprocess)
        name = session.scorer.main_metric(self.recipe.train)
        target = self.recipe.target
        goals = judge(target, baseline, judged(target, artifacts), name, self.recipe.train.metric_mode)
        for goal in goals:
            self.ctx.log("goal", f"{'met' if goal.met else 'MISSED'}: {goal.text}", key=goal.key, met=goal.met)
        skipped = note_skipped(self.ctx)
        report = build_report(
            self.recipe, self.weights, self.ctx.data, baseline, records, artifacts, goals, name, skipped
        )
        report["layers"] = layer_figures(self.original, model, self.ctx)
        report["checks"] = seal(session, measured(report), self.preprocess)
        write_report(self.folder, self.recipe, report)
        mark_delivered(self.folder, key)
        return report


def told(recipe: Recipe) -> tuple[str, str]:
    """What files and reports say of their recipe, though it changes no number."""
    return recipe.name, recipe.description


def _frozen(model: nn.Module | None, recipe: Recipe) -> nn.Module:
    """The original: loaded, or a copy of the caller's, so that theirs stays as it is."""
    original = load_model(recipe.model) if model is None else adopted(model)
    return original.eval().requires_grad_(False).to(state().device)


def _data(recipe: Recipe, preprocess: Preprocess) -> DataBundle | None:
    if recipe.data.train is None and recipe.data.val is None and recipe.data.calibration is None:
        return None
    return DataBundle(recipe.data, preprocess, recipe.seed)


def _input_size(data: DataBundle | None, preprocess: Preprocess) -> tuple[int, int, int]:
    """[channels, height, width] of the images themselves, which a caller's own loader may make as it likes."""
    return (data.input_size if data is not None else None) or preprocess.input_size


def _check_training(stages: list[Stage], data: DataBundle | None) -> None:
    """InputError, before anything heavy runs, for every stage that has nothing to train on."""
    problems = []
    for stage in stages:
        name = stage.strategy.name
        if stage.train is None:
            continue
        if data is None or not data.has_train:
            problems.append(f"data.train: {name} trains and needs images there; labels are optional with Distillation")
        elif not stage.objectives and not data.labelled:
            problems.append(
                f"{name}: trains, and has nothing to learn from: the images have no labels; "
                "add `Distillation: {}` to the recipe, or give labelled images in data.train"
            )
    if problems:
        raise InputError(problems)


def check_layers(stages: list[Stage], original: nn.Module, ctx: Context) -> None:
    """InputError, before anything heavy runs, for every stage that this model cannot have or that would do nothing."""
    problems = []
    for stage in stages:
        try:
            layers = stage.strategy.select(original, ctx)
        except InputError as error:
            problems += error.problems
            continue
        unmatched = unmatched_globs(stage.strategy.name, stage.strategy.config, layers)
        problems += unmatched
        if not unmatched and not layers.done and stage.strategy.phase is not Phase.OBJECTIVE:
            reasons = list(dict.fromkeys(layer.reason for layer in layers.left))
            problems.append(
                f"{stage.strategy.name}: no layer of this model would be changed "
                f"({'; '.join(reasons[:3]) or 'it has none of that kind'}); leave the section out, or change what it "
                "includes"
            )
    if problems:
        raise InputError(list(dict.fromkeys(problems)))


def check_head(original: nn.Module, ctx: Context) -> None:
    """One forward pass: the model takes these images, gives finite logits, and its head fits the labels."""
    with torch.no_grad(), taking(ctx.input_size):
        found = logits(original(torch.zeros(1, *ctx.input_size, device=ctx.device)))
    if found.ndim != 2 or len(found) != 1 or not found.is_floating_point():
        kind = f"{list(found.shape)} {str(found.dtype).removeprefix('torch.')}"
        raise InputError(f"model: its forward returns {kind} for one image; allowed: logits [batch, classes], floating")
    if not bool(found.isfinite().all()):
        raise InputError("model: its logits are NaN or infinite; check its weights, or model.checkpoint")
    if ctx.data is not None:
        ctx.data.check_head(found.shape[-1])
