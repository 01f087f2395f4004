"""Distillation: recover by imitating the original model, with or without labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from act.context import Context
from act.distill.capture import AUTO, expand_nodes, last_block
from act.distill.losses import FEATURE_LOSSES
from act.distill.match import FeatureTerm
from act.distill.objective import DistillObjective, LogitTerms
from act.distill.weights import sparse_aware, why_equal
from act.errors import InputError
from act.recipe.schema import ModelConfig
from act.strategies.base import LayerPlan, Phase, Strategy
from act.tokens.blocks import merging_blocks

HARD_LABELS = ("label", "teacher")
EQUAL, SPARSE_AWARE = LAYER_WEIGHTS = ("equal", "sparse_aware")
MAX_TEACHERS = 16  # each is built, and runs in every step


class Distillation(Strategy):
    """The recovery objective of every stage that trains; it changes no module. Alone it is a stage of training."""

    name = "Distillation"
    phase = Phase.OBJECTIVE

    @dataclass
    class Config:
        """Terms are summed, each with its weight; the images need no labels unless hard_label is `label`."""

        # Modules whose outputs are compared: auto (every block), a name or glob, or a list of them; []: none.
        node: str | list[str] = AUTO
        # On those outputs: l2, cosine, relation or attention; or one per entry of node. A few channels of a ViT are so
        # large that l2 sees little else; cosine compares directions, token by token.
        loss: str | list[str] = "cosine"
        alpha: float | list[float] = 20.0  # weight of an entry of node, shared by the modules it matches; or a list
        # equal, or sparse_aware: each module's weight times the loss that the stage before left there, over the mean.
        layer_weights: str = EQUAL
        soft_weight: float = 1.0  # of the KL divergence from the teacher's probabilities
        temperature: float = 1.0  # of both softmaxes; the term is scaled by its square
        hard_weight: float = 0.0  # of the cross-entropy with a class
        hard_label: str = "label"  # label: the ground truth; teacher: the teacher's most likely class
        teacher: ModelConfig | list[ModelConfig] | None = None  # None: the original; or model sections
        teacher_node: str | list[str] | None = None  # the teacher's modules, an entry each; None: same names
        teacher_weights: list[float] = field(default_factory=list)  # one per teacher; empty: equal

    @classmethod
    def problems(cls, config: Any) -> list[str]:
        """Wrong types, unknown names, lists of unequal length."""
        found = _term_problems(config) + _teacher_problems(config)
        if config.hard_label not in HARD_LABELS:
            found.append(f"hard_label: {config.hard_label!r} is unknown; allowed: {', '.join(HARD_LABELS)}")
        if config.layer_weights not in LAYER_WEIGHTS:
            found.append(f"layer_weights: {config.layer_weights!r} is unknown; allowed: {', '.join(LAYER_WEIGHTS)}")
        if config.temperature <= 0:
            found.append(f"temperature: {config.temperature} must be above 0")
        for key in ("soft_weight", "hard_weight"):
            if getattr(config, key) < 0:
                found.append(f"{key}: {getattr(config, key)} is negative; allowed: 0 or more")
        if not found and not _weights_of(config):
            found.append("soft_weight, hard_weight, alpha: all are 0, nothing would be distilled; raise one of them")
        return found

    def teacher_sources(self) -> list[ModelConfig]:
        """The teachers to load; empty: the original model is the teacher."""
        teacher = self.config.teacher
        if teacher is None:
            return []
        return [_model_config(entry) for entry in (teacher if isinstance(teacher, list | tuple) else [teacher])]

    def select(self, model: nn.Module, ctx: Context) -> LayerPlan:
        """The nodes whose outputs are compared; InputError for a name that matches no module."""
        return LayerPlan(done=[term.node for term in self._terms(model, model, check_teacher=False)])

    def prepare(self, model: nn.Module, ctx: Context) -> None:
        """Nothing: the model stays as it is."""

    def objective(
        self,
        student: nn.Module,
        teachers: list[nn.Module],
        ctx: Context,
        feature_loss: Mapping[str, float] | None = None,
    ) -> DistillObjective:
        """The loss terms for `student`, hooked to it and to the teachers until `close`.

        Args:
            teachers: one per `teacher_sources()`, else the original model alone.
            feature_loss: unweighted feature loss by module that the last stage to train on features left; None: none.

        Raises:
            InputError: a node, a teacher or a weight that does not fit, or labels that are missing.
        """
        config = self.config
        if config.hard_weight and config.hard_label == "label" and ctx.data is not None and not ctx.data.labelled:
            raise InputError(
                "Distillation.hard_weight: the ground-truth term needs labels and the training images have none; give "
                "labelled images, write hard_label: teacher, or hard_weight: 0"
            )
        shares = list(config.teacher_weights) or [1.0] * len(teachers)
        if len(shares) != len(teachers):
            raise InputError(f"Distillation.teacher_weights: {len(shares)} for {len(teachers)} teachers; give one each")
        objective = DistillObjective(
            student,
            [_in_order(student, teacher, ctx) for teacher in teachers],
            shares,
            LogitTerms(config.soft_weight, config.temperature, config.hard_weight, config.hard_label),
            [self._terms(student, teacher) for teacher in teachers],
            ctx.input_size,
            ctx.recipe.seed,
        )
        for line in objective.remarks():
            ctx.log("distillation", f"  Distillation.node: auto: {line}")
        if config.layer_weights == SPARSE_AWARE:
            _weigh(objective, feature_loss, ctx)
        return objective

    def _terms(self, student: nn.Module, teacher: nn.Module, check_teacher: bool = True) -> list[FeatureTerm]:
        """One term per module: `alpha` of an entry is shared equally by the modules that it matches."""
        entries = _entries(self.config.node)
        losses, alphas = _per_entry(self.config.loss, len(entries)), _per_entry(self.config.alpha, len(entries))
        nodes = _nodes(student, entries, losses, "Distillation.node")
        other = self._teacher_nodes(teacher, entries, losses, nodes) if check_teacher else nodes
        terms = []
        for index, (own, theirs) in enumerate(zip(nodes, other, strict=True)):
            if entries[index] == AUTO and len(own) != len(theirs):
                own, theirs = own[-1:], theirs[-1:]  # another depth: only the ends correspond
            if len(own) != len(theirs):
                raise InputError(
                    f"Distillation.teacher_node: entry {index + 1} matches {len(theirs)} modules of the teacher and "
                    f"{len(own)} of the student; they are compared in order and must be as many"
                )
            weight = float(alphas[index]) / len(own)
            merged = entries[index] == AUTO and bool(merging_blocks(student))
            pairs = zip(own, theirs, strict=True)
            terms += [FeatureTerm(a, b, losses[index], weight, merged) for a, b in pairs if weight]
        return terms

    def _teacher_nodes(
        self, teacher: nn.Module, entries: list[str], losses: list[str], nodes: list[list[str]]
    ) -> list[list[str]]:
        where = "Distillation.teacher_node"
        if self.config.teacher_node is not None:
            return _nodes(teacher, _entries(self.config.teacher_node), losses, where)
        # What a glob found in the student must be found in the teacher by name; `auto` is each model's own.
        return [
            _nodes(teacher, [AUTO], [loss], where)[0]
            if entry == AUTO
            else [name for names in expand_nodes(teacher, own, where) for name in names]
            for entry, loss, own in zip(entries, losses, nodes, strict=True)
        ]


def _weigh(objective: DistillObjective, feature_loss: Mapping[str, float] | None, ctx: Context) -> None:
    """Give the layers their weights from the stage before, or say why they stay equal."""
    reason = why_equal(feature_loss, objective.feature_weights())
    if reason is None:
        assert feature_loss is not None
        objective.weigh(sparse_aware(feature_loss))
        shown = ", ".join(f"{layer} {weight:.2f}" for layer, weight in objective.layer_weights.items())
        message = f"  Distillation.layer_weights: sparse_aware: {shown}"
    else:
        message = f"  Distillation.layer_weights: sparse_aware: layers weigh the same here: {reason}"
    ctx.log("distillation", message, layer_weights=objective.layer_weights)


def _in_order(student: nn.Module, teacher: nn.Module, ctx: Context) -> nn.Module:
    """The teacher in the student's order of channels."""
    from act.sparsity.reorder import reordered_like

    found = reordered_like(student, teacher, ctx.edits)
    if found is None:
        ctx.log(
            "warning",
            "Distillation: pruning reordered the student's channels and this teacher, built in another way, cannot "
            "follow: losses that compare channels one by one (l2, cosine) compare others; prefer loss: relation",
        )
    return teacher if found is None else found


def _nodes(model: nn.Module, entries: list[str], losses: list[str], where: str) -> list[list[str]]:
    names = expand_nodes(model, entries, where)
    for index, (entry, loss) in enumerate(zip(entries, losses, strict=True)):
        if entry == AUTO and loss == "attention":
            block = last_block(model)
            found = [name for name, _ in model.get_submodule(block).named_modules() if name.endswith("qkv")]
            if not found:
                raise InputError(
                    f"{where}: auto finds no joint qkv projection in {block}, which the loss attention needs"
                )
            names[index] = [f"{block}.{found[-1]}"]
    return names


def _entries(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _per_entry(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] * count


def _weights_of(config: Any) -> float:
    entries = _entries(config.node)
    return float(config.soft_weight + config.hard_weight + sum(_per_entry(config.alpha, len(entries))))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _term_problems(config: Any) -> list[str]:
    problems = []
    lists = {"node": config.node} | ({} if config.teacher_node is None else {"teacher_node": config.teacher_node})
    for key, value in lists.items():
        if not isinstance(value, str | list | tuple) or not all(isinstance(entry, str) for entry in _entries(value)):
            return [f"{key}: {value!r} is no module name; allowed: auto, a name or glob, or a list of them"]
    count = len(_entries(config.node))
    if config.teacher_node is not None and len(_entries(config.teacher_node)) != count:
        problems.append(
            f"teacher_node: {len(_entries(config.teacher_node))} entries for {count} of node; give one each"
        )
    for key in ("loss", "alpha"):
        value = getattr(config, key)
        if isinstance(value, list | tuple) and len(value) != count:
            problems.append(f"{key}: {len(value)} entries for {count} of node; give one each, or a single one for all")
    for name in _per_entry(config.loss, count):
        if name not in FEATURE_LOSSES:
            problems.append(f"loss: {name!r} is unknown; allowed: {', '.join(FEATURE_LOSSES)}")
    if config.layer_weights == SPARSE_AWARE and len(set(_per_entry(config.loss, count))) > 1:
        problems.append(
            "layer_weights: sparse_aware compares the losses of the modules with one another, and loss names several "
            "kinds; write one loss for all, or layer_weights: equal"
        )
    for weight in _per_entry(config.alpha, count):
        if not _is_number(weight) or weight < 0:
            problems.append(f"alpha: {weight!r}; allowed: a number from 0 up")
    return problems


def _teacher_problems(config: Any) -> list[str]:
    teacher = config.teacher
    entries = [] if teacher is None else list(teacher) if isinstance(teacher, list | tuple) else [teacher]
    known = [item.name for item in dataclasses.fields(ModelConfig)]
    problems = []
    if teacher is not None and not entries:
        problems.append("teacher: the list is empty; leave it out for the original model")
    if len(entries) > MAX_TEACHERS:
        return [f"teacher: {len(entries)} teachers; at most {MAX_TEACHERS}"]
    for entry in entries:
        if not isinstance(entry, Mapping | ModelConfig):
            problems.append(
                f"teacher: {entry!r}; allowed: null (the original model) or a section {{name: ..., checkpoint: ...}}"
            )
        elif isinstance(entry, Mapping):
            unknown = [str(key) for key in entry if key not in known]
            if unknown:
                problems.append(f"teacher: {', '.join(unknown)} unknown; allowed: {', '.join(known)}")
            elif not entry.get("name"):
                problems.append("teacher: name is missing; write a timm model name")
    count = len(entries) or 1
    if config.teacher_weights and len(config.teacher_weights) != count:
        problems.append(f"teacher_weights: {len(config.teacher_weights)} for {count} teachers; give one each, or none")
    if any(not _is_number(weight) or weight < 0 for weight in config.teacher_weights) or (
        config.teacher_weights and not sum(config.teacher_weights)
    ):
        problems.append(f"teacher_weights: {config.teacher_weights}; allowed: numbers from 0 up, not all 0")
    return problems


def _model_config(entry: Any) -> ModelConfig:
    return entry if isinstance(entry, ModelConfig) else ModelConfig(**{str(k): v for k, v in dict(entry).items()})
