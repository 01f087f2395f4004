"""Fitting a student's feature to a teacher's: channel axes, widths, heads; decided once from the shapes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from act.distill.losses import FEATURE_LOSSES, NEEDS_EQUAL_WIDTH, FeatureLoss
from act.errors import InputError


@dataclass
class FeatureTerm:
    """One compared pair of modules. `weight` includes everything but the teacher's share.

    `merged`: `auto` chose the modules, in a model that merges tokens, so their numbers of tokens may differ.
    """

    node: str
    teacher_node: str
    loss: str
    weight: float
    merged: bool = False


class Matched(nn.Module):
    """The loss of one student's feature against one teacher's, with the projection it needs (if any)."""

    def __init__(
        self, loss: FeatureLoss, axes: tuple[int, int], projection: nn.Linear | None, tokens: int | None = None
    ) -> None:
        """`tokens`: how many from the first on are compared, None for all."""
        super().__init__()
        self.loss, self.axes, self.projection, self.tokens = loss, axes, projection, tokens

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Scalar; both are module outputs as captured, in float32."""
        own = to_tokens(student, self.axes[0])[:, : self.tokens]
        if self.projection is not None:
            own = self.projection(own)
        result: Tensor = self.loss(own, to_tokens(teacher, self.axes[1])[:, : self.tokens])
        return result


def to_tokens(feature: Tensor, axis: int) -> Tensor:
    """[B, N, C] from [B, N, C], [B, C, H, W] (axis 1) or [B, H, W, C] (axis -1); [B, C] becomes one token each."""
    moved = feature.movedim(axis, -1)
    return moved.reshape(moved.shape[0], -1, moved.shape[-1])


def match(
    term: FeatureTerm,
    shapes: tuple[torch.Size, torch.Size],
    models: tuple[nn.Module, nn.Module],
    seed: int,
) -> Matched | None:
    """Decide how `term` compares a student's feature with a teacher's; `shapes` and `models` are (student, teacher).

    A student of another width gets a linear projection to the teacher's width, to be trained; its start depends on
    `seed` only. Of a `merged` term with another number of tokens the prefix tokens that both models have are
    compared; None: there are none, or the loss needs more.

    Raises:
        InputError: another number of tokens, or a loss that does not suit the node.
    """
    nodes = (term.node, term.teacher_node)
    axes = (channel_axis(shapes[0], models[0]), channel_axis(shapes[1], models[1]))
    tokens = [
        torch.Size(to_tokens(torch.empty(s, device="meta"), axis).shape) for s, axis in zip(shapes, axes, strict=True)
    ]
    where = f"Distillation.node: {term.node}"
    compared = None
    if tokens[0][1] != tokens[1][1] and term.merged:
        compared = _shared_prefix(models)
        if not compared or term.loss not in NEEDS_EQUAL_WIDTH:
            return None
    elif tokens[0][1] != tokens[1][1]:
        raise InputError(
            f"{where} gives {tokens[0][1]} tokens in the student {list(shapes[0])} and {tokens[1][1]} in the teacher's "
            f"{term.teacher_node} {list(shapes[1])}; every loss on features needs as many: choose another node"
        )
    if term.loss == "relation" and tokens[0][1] == 1:
        raise InputError(f"{where} gives one token per image, and relation compares tokens with each other; use l2")
    if term.loss == "attention":
        heads = [_heads(model, node, size[2]) for model, node, size in zip(models, nodes, tokens, strict=True)]
        if heads[0] != heads[1]:
            raise InputError(f"{where} has {heads[0]} heads and the teacher {heads[1]}; use the loss relation")
        return Matched(partial(FEATURE_LOSSES["attention"], heads=heads[0]), axes, None)
    projection = None
    if tokens[0][2] != tokens[1][2] and term.loss in NEEDS_EQUAL_WIDTH:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            projection = nn.Linear(tokens[0][2], tokens[1][2])
    return Matched(FEATURE_LOSSES[term.loss], axes, projection, compared)


def _shared_prefix(models: tuple[nn.Module, nn.Module]) -> int:
    """How many class and other prefix tokens both models have; 0 where they differ in that."""
    counts = [getattr(model, "num_prefix_tokens", 0) for model in models]
    return int(counts[0]) if counts[0] == counts[1] else 0


def channel_axis(shape: torch.Size, model: nn.Module) -> int:
    """The axis of the channels in a module's output: 1 for an image [B, C, H, W], else the last."""
    if len(shape) != 4:
        return -1
    declared = str(getattr(model, "output_fmt", ""))
    if declared in ("NHWC", "NCHW"):
        return -1 if declared == "NHWC" else 1
    return -1 if shape[1] == shape[2] != shape[3] else 1


def _heads(model: nn.Module, node: str, width: int) -> int:
    parent = model.get_submodule(node.rpartition(".")[0]) if "." in node else model
    heads = getattr(parent, "num_heads", None)
    if not isinstance(heads, int) or width % (3 * heads):
        raise InputError(
            f"Distillation.node: {node} is no joint qkv projection of an attention module, which the loss attention "
            "compares; name one, e.g. blocks.*.attn.qkv, or use the loss relation"
        )
    return heads
