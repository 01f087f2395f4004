"""Weights of distilled layers from the loss that an earlier stage left in them."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def sparse_aware(left: Mapping[str, float]) -> dict[str, float]:
    """Each layer's loss over the mean of all layers' losses, so that the weights have mean 1.

    A layer that stayed far from the teacher when the model was pruned weighs more when it is quantised (GPUSQ-ViT,
    arXiv 2305.10727). `left`: unweighted feature loss by layer, not all 0.
    """
    mean = sum(left.values()) / len(left)
    return {layer: loss / mean for layer, loss in left.items()}


def why_equal(left: Mapping[str, float] | None, layers: Collection[str]) -> str | None:
    """Why `left` says nothing on the weights of `layers`, in words; None when it does."""
    if not layers:
        return "no features are compared"
    if left is None:
        return "no stage before this one trained on features"
    if set(left) != set(layers):
        return f"the stage before compared other layers ({', '.join(left)})"
    if not sum(left.values()) > 0:
        return "the stage before left no loss in any layer"
    return None


def unweighted(losses: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """The feature terms `feature.LAYER` among weighted loss terms, by layer and without their weights."""
    return {layer: losses[f"feature.{layer}"] / weight for layer, weight in weights.items()}
