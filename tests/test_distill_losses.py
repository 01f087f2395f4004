"""Each loss against its formula written out in NumPy, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from act.distill.losses import attention, cosine, hard_cross_entropy, l2, relation, soft_kl


def tensors(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    return student, torch.randn(shape, generator=generator, dtype=torch.float64)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_kl(temperature: float) -> None:
    student, teacher = tensors(6, 7)
    q, p = softmax(student.detach().numpy() / temperature), softmax(teacher.numpy() / temperature)
    expected = (p * (np.log(p) - np.log(q))).sum(-1).mean() * temperature**2
    assert soft_kl(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-12)
    soft_kl(student, teacher, temperature).backward()
    # d/ds t^2 KL = t (q - p) / B
    np.testing.assert_allclose(student.grad.numpy(), temperature * (q - p) / 6, rtol=1e-9, atol=1e-12)


def test_hard_cross_entropy() -> None:
    student, teacher = tensors(6, 7)
    q = softmax(student.detach().numpy())
    expected = -np.log(q[np.arange(6), teacher.numpy().argmax(-1)]).mean()
    assert hard_cross_entropy(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_l2() -> None:
    student, teacher = tensors(2, 5, 8)
    expected = ((student.detach() - teacher) ** 2).mean() / (teacher**2).mean()
    assert l2(student, teacher).item() == pytest.approx(expected.item(), rel=1e-12)
    assert l2(torch.zeros_like(teacher), teacher).item() == pytest.approx(1.0)
    assert l2(100 * student, 100 * teacher).item() == pytest.approx(expected.item(), rel=1e-12)


def test_cosine() -> None:
    student, teacher = tensors(2, 5, 8)
    a, b = student.detach().numpy(), teacher.numpy()
    expected = 1 - ((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).mean()
    assert cosine(student, teacher).item() == pytest.approx(expected, rel=1e-9)
    assert cosine(3 * teacher, teacher).item() == pytest.approx(0.0, abs=1e-12)


def test_the_gradient_of_cosine_is_that_of_torch() -> None:
    student, teacher = tensors(2, 5, 8)
    assert torch.autograd.gradcheck(lambda x: cosine(x, teacher), student)
    (ours,) = torch.autograd.grad(cosine(student, teacher), student)
    (theirs,) = torch.autograd.grad((1 - F.cosine_similarity(student, teacher, dim=-1)).mean(), student)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    zero = torch.zeros(2, 5, 8, requires_grad=True)
    cosine(zero, teacher.float()).backward()
    assert zero.grad is not None and zero.grad.isfinite().all()


def test_relation_ignores_rotation_and_width() -> None:
    student, teacher = tensors(2, 5, 8)
    a, b = student.detach().numpy(), teacher.numpy()
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    expected = ((a @ a.transpose(0, 2, 1) - b @ b.transpose(0, 2, 1)) ** 2).mean()
    assert relation(student, teacher).item() == pytest.approx(expected, rel=1e-9)
    rotation, _ = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))
    assert relation(teacher @ rotation[:8], teacher).item() == pytest.approx(0.0, abs=1e-15)


def test_attention() -> None:
    student, teacher = tensors(2, 5, 3 * 12)
    maps = []
    for qkv in (student.detach().numpy(), teacher.numpy()):
        query, key = (qkv[..., 12 * i : 12 * i + 12].reshape(2, 5, 3, 4).transpose(0, 2, 1, 3) for i in (0, 1))
        maps.append(softmax(query @ key.transpose(0, 1, 3, 2) / np.sqrt(4)))
    q, p = maps
    expected = (p * np.log(p / q)).sum(-1).mean()
    assert attention(student, teacher, heads=3).item() == pytest.approx(expected, rel=1e-9)
    # The values, the last third, take no part.
    attention(student, teacher, heads=3).backward()
    assert student.grad[..., 24:].abs().max() == 0
    assert student.grad[..., :24].abs().min() > 0


@pytest.mark.parametrize("loss", [l2, cosine, relation])
def test_losses_vanish_for_equal_features_and_spare_the_teacher(loss) -> None:
    student, _ = tensors(2, 5, 8)
    teacher = student.detach().clone().requires_grad_()
    value = loss(student, teacher)
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    (value + student.sum()).backward()
    assert teacher.grad is None
