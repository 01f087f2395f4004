"""The distillation objective of a stage: teachers, captured features and the terms between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from act.distill.capture import Capture
from act.distill.heads import Heads, distilled_training
from act.distill.losses import hard_cross_entropy, soft_kl
from act.distill.match import FeatureTerm, Matched, match
from act.errors import InputError
from act.strategies.base import Objective


@dataclass(frozen=True)
class LogitTerms:
    """Weights of the terms on logits. `hard_label`: `label` (ground truth) or `teacher` (its most likely class)."""

    soft_weight: float = 1.0
    temperature: float = 1.0
    hard_weight: float = 0.0
    hard_label: str = "label"


class _Teacher:
    """A teacher, the hooks on it, and how its features fit the student's."""

    def __init__(self, model: nn.Module, share: float, terms: Sequence[FeatureTerm]) -> None:
        self.model = model.eval()  # inference mode alone keeps gradients out
        self.share = share
        self.heads = Heads(model)
        self.capture = Capture(model, [term.teacher_node for term in terms])
        self.matched: list[Matched | None] = []

    def forward(self, images: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Logits ([class] or [class, distillation]) and features by name, in float32 and usable by autograd."""
        with torch.inference_mode():
            output = self.model(images)
        # Tensors made in inference mode must not be saved for a backward pass, copies may.
        logits = [_float32(part) for part in self.heads.take(output)]
        return logits, {name: _float32(value) for name, value in self.capture.take().items()}

    def close(self) -> None:
        self.capture.close()
        self.heads.close()


class DistillObjective(Objective):
    """Weighted terms between a student and one or several teachers in eval mode, on the same batch.

    Terms: `soft` and `hard` on logits, `feature.NODE` for each pair of nodes; of several teachers the weighted mean. A
    student with a distillation token (DeiT, arXiv 2012.12877) has each of its two heads trained apart, for half the
    weight each, as `soft.class` and `soft.distillation`: the class head on the teacher's class head (or the labels, for
    `hard`), the distillation head on the teacher's distillation head when it has one, else on its only logits.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        shares: Sequence[float],
        logit_terms: LogitTerms,
        feature_terms: Sequence[Sequence[FeatureTerm]],
        input_size: tuple[int, int, int],
        seed: int = 0,
    ) -> None:
        """`shares` and `feature_terms` have one entry per teacher; the feature terms of all name the same nodes.

        Raises:
            InputError: student and teacher cannot be compared; found by one forward pass of each on a dummy image.
        """
        self.logit_terms, self.feature_terms = logit_terms, [list(terms) for terms in feature_terms]
        total = sum(shares)
        self.student = student
        self.teachers = [
            _Teacher(model, share / total, terms)
            for model, share, terms in zip(teachers, shares, self.feature_terms, strict=True)
        ]
        self.layer_weights: dict[str, float] = {}  # what `weigh` was given
        self.capture = Capture(student, [term.node for term in self.feature_terms[0]], only_with_grad=True)
        self._was_distilled = distilled_training(student)
        self.two_heads = self._was_distilled is not None and logit_terms.soft_weight + logit_terms.hard_weight > 0
        self._device: torch.device | None = None
        try:
            self._bind(input_size, seed)
        except BaseException:
            self.close()
            raise
        if self.two_heads:
            distilled_training(student, True)

    def parameters(self) -> list[nn.Parameter]:
        """The projections' weights."""
        every = [matched for teacher in self.teachers for matched in teacher.matched if matched is not None]
        return [parameter for matched in every for parameter in matched.parameters()]

    def models(self) -> list[nn.Module]:
        """The teachers."""
        return [teacher.model for teacher in self.teachers]

    def feature_weights(self) -> dict[str, float]:
        """The weight of each compared node's term, mean over the teachers."""
        found: dict[str, float] = {}
        for teacher, terms in zip(self.teachers, self.feature_terms, strict=True):
            for term, matched in zip(terms, teacher.matched, strict=True):
                if matched is not None:
                    found[term.node] = found.get(term.node, 0.0) + teacher.share * term.weight
        return {node: weight for node, weight in found.items() if weight}

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Multiply the weight of each node's terms by `weights[node]`; nodes that are not compared need none."""
        self.layer_weights = dict(weights)
        for terms in self.feature_terms:
            for term in terms:
                term.weight *= weights.get(term.node, 1.0)

    def losses(self, images: Tensor, labels: Tensor | None, output: Any) -> dict[str, Tensor]:
        """Weighted terms by name for the student's `output` (logits [B, classes], or a pair of them) on `images`."""
        if self._device != images.device:
            self._device = images.device
            for teacher in self.teachers:
                teacher.model.to(images.device)
        features = self.capture.take()
        terms: dict[str, Tensor] = {}
        for index, teacher in enumerate(self.teachers):
            logits, teacher_features = teacher.forward(images)
            # Losses are differences of close numbers: float32 whatever the forward pass ran in.
            with torch.autocast(images.device.type, enabled=False):
                own = [part.float() for part in _student_logits(output)]
                found = self._soft(own, logits) | self._pseudo_hard(own, logits)
                for term, matched in zip(self.feature_terms[index], teacher.matched, strict=True):
                    if matched is None:
                        continue
                    value = matched(features[term.node].float(), teacher_features[term.teacher_node])
                    name = f"feature.{term.node}"
                    found[name] = found.get(name, 0.0) + term.weight * value
            for name, value in found.items():
                terms[name] = terms.get(name, 0.0) + teacher.share * value
        return terms | self._hard(output, labels)

    def close(self) -> None:
        """Remove every hook and put the student's heads back."""
        self.capture.close()
        for teacher in self.teachers:
            teacher.close()
        if self.two_heads and self._was_distilled is not None:
            distilled_training(self.student, self._was_distilled)

    def remarks(self) -> list[str]:
        """What `auto` could not compare in full, one line for each way of comparing less."""
        pairs = [
            (term.node, matched)
            for teacher, terms in zip(self.teachers, self.feature_terms, strict=True)
            for term, matched in zip(terms, teacher.matched, strict=True)
        ]
        lines = []
        skipped = dict.fromkeys(node for node, matched in pairs if matched is None)
        partly = {node: matched.tokens for node, matched in pairs if matched is not None and matched.tokens is not None}
        if partly:
            lines.append(f"on class (prefix) tokens only, {max(partly.values())} of each: {', '.join(partly)}")
        if skipped:
            lines.append(f"not at all, which leaves the logits: {', '.join(skipped)}")
        return [f"compared {line}, since the teacher has another number of tokens there" for line in lines]

    def _soft(self, own: list[Tensor], teacher: list[Tensor]) -> dict[str, Tensor]:
        weight, temperature = self.logit_terms.soft_weight, self.logit_terms.temperature
        if not weight:
            return {}
        if len(own) == 1:
            return {"soft": weight * soft_kl(own[0], _mean(teacher), temperature)}
        return {
            "soft.class": 0.5 * weight * soft_kl(own[0], teacher[0], temperature),
            "soft.distillation": 0.5 * weight * soft_kl(own[1], teacher[-1], temperature),
        }

    def _pseudo_hard(self, own: list[Tensor], teacher: list[Tensor]) -> dict[str, Tensor]:
        weight = self.logit_terms.hard_weight
        if not weight or self.logit_terms.hard_label != "teacher":
            return {}
        if len(own) == 1:
            return {"hard": weight * hard_cross_entropy(own[0], _mean(teacher))}
        return {
            "hard.class": 0.5 * weight * hard_cross_entropy(own[0], teacher[0]),
            "hard.distillation": 0.5 * weight * hard_cross_entropy(own[1], teacher[-1]),
        }

    def _hard(self, output: Any, labels: Tensor | None) -> dict[str, Tensor]:
        weight = self.logit_terms.hard_weight
        if not weight or self.logit_terms.hard_label != "label":
            return {}
        if labels is None:
            raise InputError(
                "Distillation.hard_weight: the ground-truth term needs labels and these images have none; give "
                "labelled images, write hard_label: teacher, or hard_weight: 0"
            )
        with torch.autocast(labels.device.type, enabled=False):
            return {"hard": weight * F.cross_entropy(_student_logits(output)[0].float(), labels)}

    def _bind(self, input_size: tuple[int, int, int], seed: int) -> None:
        """Run a dummy image through student and teachers, and decide how each pair of features is compared."""
        image = torch.zeros(1, *input_size, device=next(self.student.parameters()).device)
        training = self.student.training
        self.student.eval()
        with torch.enable_grad():
            own_logits = _student_logits(self.student(image))[0]
        self.student.train(training)
        own = self.capture.take()
        for index, teacher in enumerate(self.teachers):
            teacher.model.to(image.device)
            try:
                logits, features = teacher.forward(image)
            except (RuntimeError, AssertionError) as error:
                raise InputError(
                    f"Distillation.teacher: it cannot take the student's images {list(input_size)}: {error}"
                ) from error
            if logits[0].shape != own_logits.shape:
                raise InputError(
                    f"Distillation.teacher: it has {logits[0].shape[-1]} classes, the student {own_logits.shape[-1]}; "
                    "both must have the same, in the same order"
                )
            for position, term in enumerate(self.feature_terms[index]):
                shapes = (own[term.node].shape, features[term.teacher_node].shape)
                matched = match(term, shapes, (self.student, teacher.model), seed + position)
                teacher.matched.append(None if matched is None else matched.to(image.device))


def _student_logits(output: Any) -> list[Tensor]:
    """[class logits], or [class, distillation] of a model with a distillation token in training."""
    from act.models import logits

    if isinstance(output, tuple | list) and len(output) == 2 and output[0].shape == output[1].shape:
        return list(output)
    return [logits(output)]


def _mean(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else (parts[0] + parts[1]) / 2


def _float32(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.dtype == torch.float32 else tensor.float()
