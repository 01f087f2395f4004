"""TensorRT's rules for products: 2:4, alignment, the type of the body, and attention.

Sources: BuilderFlag.SPARSE_WEIGHTS (2 of 4 consecutive values along the reduction axis are zero), the documented
limits of fused int8 attention (head size 16, 32 or 64, sequences up to 512), and where its Q/DQ must stand.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import torch
from torch import Tensor

from act.export.onnx_graph import Array, Attention, Graph, Weight
from act.sparsity.masks import nm_violations, parse_pattern
from act.verify.tensorrt_rules import ERROR, WARNING, Findings, Subject, label, rule

MULTIPLE = 16  # of K and N, in int8 values: 16 bytes, what an int8 tensor-core instruction reads at once
HEAD_SIZES, LONGEST = (16, 32, 64), 512


def broken_groups(array: Array, k: int) -> int:
    """How many groups of 4 consecutive values along axis `k` hold more than 2 nonzeros; K a multiple of 4."""
    rows = np.moveaxis(array, k, -1)
    return int((np.count_nonzero(rows.reshape(*rows.shape[:-1], -1, 4), axis=-1) > 2).sum())


def sparse_kernels(pattern: str) -> bool:
    """Whether sparse tensor cores can run weights of this N:M pattern: at most 2 nonzeros of every 4."""
    n, m, _ = parse_pattern(pattern)
    return m <= 4 and n <= 2


@rule("sparsity", ERROR)
def sparsity(subject: Subject) -> Findings:
    """Weights that are claimed to be 2:4, or of another pattern, are, along K, after quantisation."""
    for claim in subject.lost:
        yield claim, "claimed to be sparse, but no product of the file has a weight of that name"
    for weight, pattern in _claimed(subject):
        array, m = weight.array, parse_pattern(pattern).m
        size = array.shape[weight.k]
        if size % m:
            yield label(weight.product), f"{weight.name}: claims {pattern} with K = {size}; allowed: multiples of {m}"
        elif broken := nm_violations(_rows(array, weight.k), *parse_pattern(pattern)):
            yield (
                label(weight.product),
                f"{weight.name}: {broken} groups of {m} along K (axis {weight.k} of {list(array.shape)}) have more "
                f"nonzeros than {pattern} allows; apply the mask to the quantised weight",
            )


@rule("sparse-kernels", WARNING)
def other_patterns(subject: Subject) -> Findings:
    """Sparse weights are of a pattern that sparse kernels run."""
    for weight, pattern in _claimed(subject):
        if not sparse_kernels(pattern):
            yield label(weight.product), f"{weight.name}: {pattern} runs densely; sparse tensor cores run 2:4"


def _claimed(subject: Subject) -> Iterator[tuple[Weight, str]]:
    return ((item, subject.sparse[item.name]) for item in subject.graph.weights() if item.name in subject.sparse)


def _rows(array: Array, k: int) -> Tensor:
    """[rows, K] of a weight whose reduction axis is `k`."""
    return torch.from_numpy(np.moveaxis(array, k, -1).reshape(-1, array.shape[k]).copy())


@rule("alignment", WARNING)
def alignment(subject: Subject) -> Findings:
    """K and N of integer and of sparse products are multiples of 16."""
    for weight in subject.graph.weights():
        if not (weight.name in subject.sparse or subject.graph.integer(weight.product)):
            continue
        sizes = {"K": weight.array.shape[weight.k], "N": weight.array.shape[weight.n]}
        if weight.product.op_type == "Conv":
            sizes["K"] *= int(np.prod(weight.array.shape[2:]))
        odd = [f"{name} = {size}" for name, size in sizes.items() if size % MULTIPLE]
        if odd:
            yield (
                label(weight.product),
                f"{weight.name}: {', '.join(odd)}; tensor cores work on multiples of {MULTIPLE}, others are padded or "
                "run in float; leave the layer in FP16 or change its width",
            )


@rule("float32-body", WARNING)
def float32_body(subject: Subject) -> Findings:
    """The float part computes in half precision."""
    types = subject.graph.types
    wide = [node for node in subject.graph.products() if types.get(node.output[0]) == onnx.TensorProto.FLOAT]
    if wide:
        yield (
            label(wide[0]),
            f"{len(wide)} products compute in float32, this one first; a strongly typed engine keeps that, which is "
            "slower than FP16; convert the body (export --to tensorrt does)",
        )


@rule("attention-shape", WARNING)
def attention_shape(subject: Subject) -> Findings:
    """Integer attention stays within what the fused kernels take."""
    for attention in subject.graph.attentions():
        if not attention.integer:
            continue
        shapes = [subject.graph.shapes.get(name, []) for name in attention.scores.input[:2]]
        if any(len(shape) < 2 for shape in shapes):
            continue
        head, lengths = shapes[0][-1], [size for size in (shapes[0][-2], shapes[1][-1]) if size is not None]
        if head is not None and head not in HEAD_SIZES:
            yield label(attention.scores), _limit(f"head size {head}", "16, 32 or 64")
        if any(size > LONGEST for size in lengths):
            yield label(attention.scores), _limit(f"a sequence of {max(lengths)}", f"up to {LONGEST}")


def _limit(found: str, allowed: str) -> str:
    return f"int8 attention with {found}; fused kernels take {allowed}; leave matmul out of quantize_op_types"


@rule("attention-complete", ERROR)
def attention_complete(subject: Subject) -> Findings:
    """Of an attention's five points (Q, K, softmax P, V, output O), all are quantised or none of the first four.

    O alone is the input of the projection that follows, which is an ordinary integer product.
    """
    for attention in subject.graph.attentions():
        if attention.integer and not all(attention.points.values()):
            missing = ", ".join(name for name, there in attention.points.items() if not there)
            yield (
                label(attention.softmax),
                f"int8 attention without Q/DQ at {missing}; allowed: at all of QKPVO, or none",
            )


@rule("attention-scale", WARNING)
def attention_scale(subject: Subject) -> Findings:
    """The attention's factor is on the query, before the first product."""
    for attention in subject.graph.attentions():
        node = scale_after(subject.graph, attention)
        if node is not None:
            yield (
                label(node),
                "scales the scores after q k^T, which keeps attention from fusing; scale the query instead",
            )


def scale_after(graph: Graph, attention: Attention) -> onnx.NodeProto | None:
    """The Mul or Div by one constant number that directly follows the first product, if any."""
    for node, index in graph.consumers.get(attention.scores.output[0], []):
        if node.op_type in ("Mul", "Div"):
            factor = graph.constant(node.input[1 - index])
            if factor is not None and factor.size == 1 and (node.op_type == "Mul" or index == 0):
                return node
    return None


def sparse_along_k(weight: Weight) -> bool:
    """Whether a weight is 2:4 along K, claimed or not."""
    return weight.array.shape[weight.k] % 4 == 0 and broken_groups(weight.array, weight.k) == 0
