"""Distillation on real models: nodes, teachers, heads, projections, and training with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from distill_support import context, distilled, images, losses, make, strategy
from torch import nn

from act.distill.losses import cosine, soft_kl
from act.errors import InputError
from act.recipe.schema import ModelConfig, TrainConfig
from act.strategies.base import find_strategy
from act.strategies.distillation import Distillation
from act.train.recover import recover


def test_default_is_soft_logits_and_every_block() -> None:
    student, teacher = make(seed=1), make()
    terms = losses(student, [teacher])
    assert list(terms) == ["soft", "feature.blocks.0", "feature.blocks.1"]
    with torch.no_grad():
        soft = soft_kl(student(images()), teacher(images()))
        feature = cosine(
            student.blocks(student.pos_drop(student._pos_embed(student.patch_embed(images())))),
            teacher.blocks(teacher.pos_drop(teacher._pos_embed(teacher.patch_embed(images())))),
        )
    torch.testing.assert_close(terms["soft"].detach(), soft)
    torch.testing.assert_close(terms["feature.blocks.1"].detach(), 20 / 2 * feature)
    assert find_strategy("Distillation") is Distillation


def test_a_copy_of_the_teacher_loses_nothing() -> None:
    terms = losses(make(), [make()], node=["blocks.*", "blocks.*.attn.qkv"], loss=["relation", "attention"])
    assert set(terms) == {"soft", "feature.blocks.0", "feature.blocks.1"} | {
        f"feature.blocks.{i}.attn.qkv" for i in (0, 1)
    }
    assert all(float(value.detach()) == pytest.approx(0.0, abs=1e-6) for value in terms.values())


def test_alpha_of_a_glob_is_shared_by_its_modules() -> None:
    both = losses(make(seed=1), [make()], node="blocks.*", alpha=1.0)
    one = losses(make(seed=1), [make()], node="blocks.0", alpha=1.0)
    torch.testing.assert_close(both["feature.blocks.0"] * 2, one["feature.blocks.0"])


@pytest.mark.parametrize(
    ("fields", "terms"),
    [
        ({"soft_weight": 0.0}, {"hard", "feature.blocks.0", "feature.blocks.1"}),
        ({"node": []}, {"soft", "hard"}),
        ({"alpha": 0.0}, {"soft", "hard"}),
        ({"hard_weight": 0.0}, {"soft", "feature.blocks.0", "feature.blocks.1"}),
    ],
)
def test_each_term_can_be_switched_off(fields: dict[str, Any], terms: set[str]) -> None:
    on = {"hard_weight": 1.0, "layer_weights": "sparse_aware"}
    assert set(losses(make(seed=1), [make()], context(labelled=True), **{**on, **fields})) == terms


def test_layer_weights_multiply_the_terms() -> None:
    student, teachers = make(seed=1), [make(), make(seed=2)]
    sources = [{"name": "a"}, {"name": "b"}]
    fields = {"teacher": sources, "teacher_weights": [3.0, 1.0], "alpha": 6.0}
    equal = losses(student, teachers, **fields)
    aware = strategy(**fields, layer_weights="sparse_aware")
    objective = aware.objective(student, teachers, context(), {"blocks.0": 0.1, "blocks.1": 0.3})
    assert objective.feature_weights() == {"blocks.0": pytest.approx(1.5), "blocks.1": pytest.approx(4.5)}
    student.train()
    terms = objective.losses(images(), None, student(images()))
    objective.close()
    for name, factor in {"soft": 1.0, "feature.blocks.0": 0.5, "feature.blocks.1": 1.5}.items():
        torch.testing.assert_close(terms[name], factor * equal[name])


def test_gradients_reach_the_student_only_and_hooks_go() -> None:
    student, teacher = make(seed=1), make()
    objective = strategy().objective(student, [teacher], context())
    student.train()
    terms = objective.losses(images(), None, student(images()))
    sum(terms.values()).backward()
    assert student.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    with torch.no_grad():
        student(images())
    with pytest.raises(InputError, match=r"blocks\.1 has no output"):  # nothing is recorded without gradients
        objective.capture.take()
    objective.close()
    assert not any(module._forward_hooks for model in (student, teacher) for module in model.modules())


def test_width_mismatch_gets_a_trained_projection(tmp_path: Path) -> None:
    student, teacher = make(seed=1), make(embed_dim=96)
    ctx = context()
    objective = strategy(node="blocks.1", soft_weight=0.0, alpha=1.0).objective(student, [teacher], ctx)
    weight, bias = objective.parameters()
    assert weight.shape == (96, 48)
    before = weight.detach().clone()
    cfg = TrainConfig(train_iter=12, learning_rate=3e-3, logging_iter=1)
    events: list[Any] = []
    ctx.log = lambda event, message="", **fields: events.append(fields)
    recover(student, None, [objective], cfg, ctx, tmp_path, None)
    assert not torch.equal(before, weight)
    assert bias.grad is None  # the loop leaves no gradients behind
    first, last = (sum(event["losses"].values()) for event in (events[0], events[-1]))
    assert last < first
    assert losses(make(seed=1), [teacher], loss="relation")["feature.blocks.1"].requires_grad


def test_projection_starts_from_the_seed_only() -> None:
    one, two = (strategy().objective(make(seed=1), [make(embed_dim=96)], context()).parameters() for _ in range(2))
    assert torch.equal(one[0], two[0])


def test_teachers_are_averaged_by_weight() -> None:
    a, b = make(seed=1), make(seed=2)
    student = make(seed=3)
    mixed = losses(
        student, [a, b], teacher=[{"name": "deit_a"}, {"name": "deit_b"}], teacher_weights=[3.0, 1.0], hard_weight=0.0
    )
    for name, value in mixed.items():
        torch.testing.assert_close(value, 0.75 * losses(student, [a])[name] + 0.25 * losses(student, [b])[name])
    sources = strategy(teacher=[{"name": "x"}, {"name": "y", "pretrained": True}]).teacher_sources()
    assert sources == [ModelConfig(name="x"), ModelConfig(name="y", pretrained=True)]
    assert strategy().teacher_sources() == []


def test_hard_terms() -> None:
    student, teacher = make(seed=1), make()
    logits, target = student(images()), teacher(images()).argmax(-1)
    truth = losses(student, [teacher], context(labelled=True), hard_weight=2.0)["hard"]
    torch.testing.assert_close(truth, 2 * nn.functional.cross_entropy(logits, torch.arange(4)))
    pseudo = losses(student, [teacher], hard_weight=2.0, hard_label="teacher")["hard"]
    torch.testing.assert_close(pseudo, 2 * nn.functional.cross_entropy(logits, target))
    with pytest.raises(InputError, match="hard_label: teacher"):
        losses(student, [teacher], hard_weight=1.0)


def both_heads(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    model.set_distilled_training(True)
    model.train()
    output: tuple[torch.Tensor, torch.Tensor] = model(images())
    model.eval()
    model.set_distilled_training(False)
    return output


def test_distillation_token_learns_from_the_teachers_own_heads() -> None:
    student, teacher = distilled(1), distilled()
    for name in ("head", "head_dist"):
        nn.init.normal_(getattr(teacher, name).weight)
    terms = losses(student, [teacher], temperature=2.0)
    assert list(terms) == ["soft.class", "soft.distillation", "feature.blocks.0", "feature.blocks.1"]
    own, theirs = both_heads(student), both_heads(teacher)
    torch.testing.assert_close(terms["soft.class"], 0.5 * soft_kl(own[0], theirs[0], 2.0))
    torch.testing.assert_close(terms["soft.distillation"], 0.5 * soft_kl(own[1], theirs[1], 2.0))
    assert not torch.allclose(theirs[0], theirs[1])
    assert student.distilled_training is False  # put back by close


def test_distillation_token_learns_from_a_plain_teacher() -> None:
    student, teacher = distilled(1), make()
    terms = losses(student, [teacher], context(labelled=True), node=[], hard_weight=1.0)
    own, theirs = both_heads(student), teacher(images())
    torch.testing.assert_close(terms["soft.distillation"], 0.5 * soft_kl(own[1], theirs))
    torch.testing.assert_close(terms["hard"], nn.functional.cross_entropy(own[0], torch.arange(4)))
    grads = torch.autograd.grad(terms["soft.distillation"], student.head_dist.weight)
    assert grads[0].abs().sum() > 0


def test_plain_student_learns_from_the_mean_of_a_distilled_teacher() -> None:
    student, teacher = make(seed=1), distilled()
    terms = losses(student, [teacher], node=[])
    torch.testing.assert_close(terms["soft"], soft_kl(student(images()), teacher(images())))


def test_training_under_bf16_keeps_float32_terms(tmp_path: Path) -> None:
    student, teacher = make(seed=1), make()
    ctx = context()
    objective = strategy(node=["blocks.1", "blocks.0.attn.qkv"], loss=["cosine", "attention"]).objective(
        student, [teacher], ctx
    )
    seen: set[torch.dtype] = set()
    inner = objective.losses

    def spy(*args: Any) -> Any:
        terms = inner(*args)
        seen.update(value.dtype for value in terms.values())
        return terms

    objective.losses = spy  # type: ignore[method-assign]
    result = recover(student, None, [objective], TrainConfig(train_iter=3, amp="bf16"), ctx, tmp_path, None)
    assert seen == {torch.float32}
    assert set(result.losses) == {"soft", "feature.blocks.1", "feature.blocks.0.attn.qkv"}


def test_distillation_brings_a_student_closer(tmp_path: Path) -> None:
    teacher, student = make(), make(seed=1)
    nn.init.normal_(teacher.head.weight, std=0.5)
    ctx = context()
    objective = strategy().objective(student, [teacher], ctx)
    events: list[Any] = []
    ctx.log = lambda event, message="", **fields: events.append(fields)
    cfg = TrainConfig(train_iter=40, learning_rate=1e-3, logging_iter=1, ema_decay=0.9)
    recover(student, None, [objective], cfg, ctx, tmp_path, None)
    first, last = events[0]["losses"], events[-1]["losses"]
    assert last["soft"] < 0.7 * first["soft"] and sum(last.values()) < 0.75 * sum(first.values())


@pytest.mark.parametrize(
    ("teacher", "fields", "words"),
    [
        ({"num_classes": 7}, {}, "7 classes, the student 5"),
        ({"img_size": 64}, {}, "cannot take the student's images"),
        ({"patch_size": 4}, {}, "tokens in the student"),
        ({"depth": 1}, {"node": "blocks.1"}, "Distillation.teacher_node: no module is called 'blocks.1'"),
        ({"num_heads": 4}, {"node": "blocks.1.attn.qkv", "loss": "attention"}, "3 heads and the teacher 4"),
        ({}, {"node": "blocks.1", "loss": "attention"}, "no joint qkv projection"),
        ({}, {"node": "head", "loss": "relation"}, "one token per image"),
        ({}, {"teacher_weights": [1.0]}, None),
    ],
)
def test_what_cannot_be_compared_is_said(teacher: dict[str, Any], fields: dict[str, Any], words: str | None) -> None:
    student = make(seed=1)
    if words is None:
        assert losses(student, [make(**teacher)], **fields)
        return
    with pytest.raises(InputError) as caught:
        losses(student, [make(**teacher)], **fields)
    assert words in str(caught.value)
    assert not any(module._forward_hooks for module in student.modules())


def test_teacher_nodes_of_another_depth() -> None:
    terms = losses(make(seed=1), [make(depth=3)], node=["blocks.0", "blocks.1"], teacher_node=["blocks.1", "blocks.2"])
    assert "feature.blocks.1" in terms
    other = losses(make(seed=1), [make(depth=3)])  # auto: blocks do not correspond, the last ones do
    assert [name for name in other if name.startswith("feature")] == ["feature.blocks.1"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"loss": "l3"}, "allowed: l2, cosine, relation, attention"),
        ({"loss": ["l2", "l2"]}, "2 entries for 1 of node"),
        ({"node": 3}, "no module name"),
        ({"alpha": -1}, "from 0 up"),
        ({"hard_label": "true"}, "allowed: label, teacher"),
        ({"temperature": 0.0}, "above 0"),
        ({"soft_weight": 0.0, "node": []}, "nothing would be distilled"),
        ({"teacher": "resnet"}, "allowed: null"),
        ({"teacher": {"nam": "x"}}, "nam unknown"),
        ({"teacher_weights": [1.0, 2.0]}, "2 for 1 teachers"),
        ({"teacher_node": ["a", "b"]}, "2 entries for 1 of node"),
    ],
)
def test_impossible_sections_are_named(fields: dict[str, Any], words: str) -> None:
    problems = Distillation.problems(Distillation.Config(**fields))
    assert any(words in problem for problem in problems), problems
