"""Distillation losses as plain functions of tensors.

Every function takes the student's tensor first and the teacher's, a constant, second, and returns a scalar in the
dtype of its inputs; the caller passes float32. The teacher's tensor gets no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FeatureLoss = Callable[..., Tensor]
_TINY = 1e-12


def soft_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """t^2 * KL(softmax(teacher / t) || softmax(student / t)), averaged over the batch (arXiv 1503.02531).

    Both are logits [B, classes]. The factor t^2 keeps the gradient's size independent of the temperature.
    """
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.detach() / temperature, dim=-1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def hard_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy of the student's logits [B, classes] with the teacher's most likely class (arXiv 2012.12877)."""
    return F.cross_entropy(student, teacher.detach().argmax(dim=-1))


def l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference over the teacher's mean square: 0 for equal, 1 for a student that is all zero.

    Any equal shape. The division makes one weight fit layers and models whose features differ in scale.
    """
    target = teacher.detach()
    return (student - target).square().mean() / target.square().mean().clamp(min=_TINY)


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine similarity of corresponding tokens, averaged; [..., C] each. Blind to the length of a token."""
    similarity: Tensor = _Cosine.apply(student, teacher.detach())
    return (1 - similarity).mean()


class _Cosine(torch.autograd.Function):
    """Cosine similarity along the last axis, with the gradient of the first argument in two passes over memory.

    With c = s.t / |s||t| the gradient is (t / |t| - c s / |s|) / |s|, a sum of two scaled tensors. PyTorch's own
    normalises both tensors, keeps them and goes through them a dozen times.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        own, other = (torch.linalg.vector_norm(x, dim=-1).clamp_min(_TINY**0.5) for x in (student, teacher))
        cos: Tensor = torch.linalg.vecdot(student, teacher) / (own * other)
        ctx.save_for_backward(student, teacher, own, other, cos)
        return cos

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        student, teacher, own, other, cos = ctx.saved_tensors
        toward, away = (grad / (own * other)).unsqueeze(-1), (grad * cos / own.square()).unsqueeze(-1)
        return (teacher * toward).addcmul_(student, away, value=-1), None


def relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the Gram matrices of L2-normalised tokens (MiniViT, arXiv 2204.07154).

    [B, N, C] each; the widths C may differ. The matrices [B, N, N] hold the cosines between tokens of one image.
    """
    own = F.normalize(student, dim=-1)
    target = F.normalize(teacher.detach(), dim=-1)
    return (own @ own.transpose(-1, -2) - target @ target.transpose(-1, -2)).square().mean()


def attention(student: Tensor, teacher: Tensor, heads: int = 1, teacher_heads: int | None = None) -> Tensor:
    """KL(teacher || student) between attention maps softmax(q k^T / sqrt(d)), averaged over images, heads, queries.

    Both are outputs of a joint qkv projection [B, N, 3 * heads * d], ordered as timm does: q, k, v, then heads. The
    head dimensions d may differ, the number of heads may not. Position biases and q/k norms, which some models add
    after the projection, are not part of it.
    """
    log_student = F.log_softmax(_attention_logits(student, heads), dim=-1)
    log_teacher = F.log_softmax(_attention_logits(teacher.detach(), teacher_heads or heads), dim=-1)
    batch, head, tokens, _ = log_student.shape
    total = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return total / (batch * head * tokens)


def _attention_logits(qkv: Tensor, heads: int) -> Tensor:
    batch, tokens, width = qkv.shape
    query, key, _ = qkv.reshape(batch, tokens, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    scores: Tensor = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return scores


FEATURE_LOSSES: dict[str, FeatureLoss] = {"l2": l2, "cosine": cosine, "relation": relation, "attention": attention}
# Losses that compare the channels one by one, so that a student of another width needs a projection.
NEEDS_EQUAL_WIDTH = ("l2", "cosine")
