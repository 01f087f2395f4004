"""What can be removed from a model: heads and their dimensions, hidden units of MLPs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from timm.layers import GluMlp, Mlp, SwiGLU
from timm.layers.mlp import ConvMlp
from timm.models.pvt_v2 import MlpWithDepthwiseConv
from torch import nn

from act.strategies.base import LayerLeft
from act.structure.attention.base import AttentionView, attention_views, identity
from act.structure.axes import HEADS, HIDDEN, Axis, K, Q, V, find_tensor

MLP_KINDS: tuple[type[nn.Module], ...] = (Mlp, GluMlp, SwiGLU, ConvMlp, MlpWithDepthwiseConv)
ONE_BY_ONE = (nn.GELU, nn.ReLU, nn.SiLU, nn.Tanh, nn.Hardswish, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.Mish)


@dataclass(frozen=True)
class AttentionUnits:
    """An attention module: its sizes, its axes (full names), and why dimensions must stay (None: they can go)."""

    name: str
    view: AttentionView
    axes: tuple[Axis, ...]
    heads: int
    qk_dim: int
    v_dim: int
    heads_reason: str | None
    qk_reason: str | None
    v_reason: str | None

    @property
    def reader(self) -> str:
        """The projection that reads the heads' outputs."""
        return f"{self.name}.{self.view.proj}"

    def sizes(self) -> dict[str, int]:
        """Lengths of the segments."""
        wide, narrow = self.heads * self.qk_dim, self.heads * self.v_dim
        return {Q: wide, K: wide, V: narrow, HEADS: self.heads}


@dataclass(frozen=True)
class MlpUnits:
    """An MLP: its hidden units, and the layer that reads them."""

    name: str
    axes: tuple[Axis, ...]
    hidden: int
    reader: str

    def sizes(self) -> dict[str, int]:
        """Lengths of the segments."""
        return {HIDDEN: self.hidden}


Group = AttentionUnits | MlpUnits


@dataclass(frozen=True)
class Found:
    """The groups of units in the order of the model, and what was left, with the reason."""

    groups: list[Group]
    left: list[LayerLeft]

    def group(self, name: str) -> Group:
        """The group of that module."""
        return next(group for group in self.groups if group.name == name)


def unit_kinds() -> tuple[type[nn.Module], ...]:
    """Every class of module that has a view."""
    return (*(kind for view in attention_views() for kind in view.kinds), *MLP_KINDS)


def find_units(model: nn.Module) -> Found:
    """Every attention and MLP of `model`; those without a view, or that cannot be cut, are left with the reason."""
    views = attention_views()
    groups: list[Group] = []
    left: list[LayerLeft] = []
    for name, module in model.named_modules():
        view = next((view for view in views if isinstance(module, view.kinds)), None)
        found: Group | str | None = None
        if view is not None:
            found = view.reason(module) or attention_units(model, name, view)
        elif isinstance(module, MLP_KINDS):
            found = _mlp(model, name, module)
        elif (layers := mlp_sequence(module)) is not None:
            found = _mlp_of(model, name, [layers[0]], layers[1])
        elif _looks_like_one(module):
            found = f"no view of {type(module).__name__} yet"
        if isinstance(found, str):
            left.append(LayerLeft(name, found))
        elif found is not None:
            groups.append(found)
    return Found(groups, left)


def attention_units(model: nn.Module, name: str, view: AttentionView) -> AttentionUnits:
    """The units of one attention module of `model` as it is now."""
    module = model.get_submodule(name)
    heads = int(module.num_heads)  # type: ignore[arg-type]
    axes = view.axes(module)
    reader = next(axis for axis in axes if axis.tensor == f"{view.proj}.weight")
    narrow = find_tensor(module, reader.tensor).shape[reader.dim]
    source = next(axis for axis in axes if Q in axis.segments)
    rows = find_tensor(module, source.tensor).shape[source.dim] - narrow * source.segments.count(V)
    wide = rows // (len(source.segments) - source.segments.count(V))
    return AttentionUnits(
        name,
        view,
        tuple(replace(axis, tensor=f"{name}.{axis.tensor}") for axis in axes),
        heads,
        wide // heads,
        narrow // heads,
        view.heads_reason(module, model),
        view.qk_reason(module),
        view.v_reason(module),
    )


def _mlp(model: nn.Module, name: str, module: nn.Module) -> MlpUnits | str:
    if not identity(module, "norm"):
        return "its hidden units are normalised together"
    writers = ["fc1_g", "fc1_x"] if isinstance(module, SwiGLU) else ["fc1"]
    through = ["dwconv"] if isinstance(module, MlpWithDepthwiseConv) else []
    return _mlp_of(model, name, writers + through, "fc2", (HIDDEN,) * (2 if isinstance(module, GluMlp) else 1))


def _mlp_of(
    model: nn.Module, name: str, writers: list[str], reader: str, segments: tuple[str, ...] = (HIDDEN,)
) -> MlpUnits:
    """The units of the layers `writers` of `name`, which the layer `reader` reads."""
    axes = [
        Axis(f"{name}.{writer}.{leaf}", 0, segments)
        for writer in writers
        for leaf in ("weight", "bias")
        if getattr(model.get_submodule(f"{name}.{writer}"), leaf) is not None
    ]
    read = Axis(f"{name}.{reader}.weight", 1, (HIDDEN,))
    return MlpUnits(name, (*axes, read), find_tensor(model, read.tensor).shape[1], f"{name}.{reader}")


def mlp_sequence(module: nn.Module) -> tuple[str, str] | None:
    """Names of the two layers of a sequence that is an MLP: as wide after as before, and one by one in between."""
    if not isinstance(module, nn.Sequential):
        return None
    layers = [(name, child) for name, child in module.named_children() if isinstance(child, nn.Linear)]
    others = [child for child in module if not isinstance(child, nn.Linear | nn.Dropout | nn.Identity)]
    if len(layers) != 2 or len(others) != 1 or not isinstance(others[0], ONE_BY_ONE) or module[0] is not layers[0][1]:
        return None
    (first, wide), (second, narrow) = layers
    whole = wide.out_features == narrow.in_features and wide.in_features == narrow.out_features
    return (first, second) if whole else None


def misfits(model: nn.Module, group: Group) -> list[str]:
    """Tensors of a group whose length is not that of its segments."""
    sizes, found = group.sizes(), []
    for axis in group.axes:
        length, wanted = find_tensor(model, axis.tensor).shape[axis.dim], sum(sizes[s] for s in axis.segments)
        if length != wanted:
            found.append(f"{axis.tensor} has {length} entries, not {wanted}")
    return found


def _looks_like_one(module: nn.Module) -> bool:
    children = dict(module.named_children())
    attention = isinstance(getattr(module, "num_heads", None), int) and ("qkv" in children or "proj" in children)
    return attention or {"fc1", "fc2"} <= children.keys()
