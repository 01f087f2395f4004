"""TransformerPrune: heads, their dimensions and hidden units of MLPs are really removed."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from act.analysis import analyze
from act.errors import InputError
from act.strategies.base import Invariant, LayerLeft, LayerPlan, Phase, Strategy
from act.structure.importance import CRITERIA
from act.structure.planner import ALLOCATIONS, UNITS
from act.structure.units import AttentionUnits, Found, find_units, misfits, unit_kinds

if TYPE_CHECKING:
    from act.context import Context

LEAST_RATIO = 0.02  # half of which is not worth another run
COSTS = ("macs", "params", "latency")


@dataclass
class TransformerPruneConfig:
    """Structured pruning to a share of the model's cost."""

    # Share of `of` to remove, of the whole model; None: what target.macs, latency_ms or speedup asks for.
    pruned_ratio: float | None = 0.25
    of: str = "macs"  # macs, params, or latency: measured here in target.backend at target.batch
    # Share of the residual channels kept, through the whole model; it counts towards pruned_ratio. None: chosen.
    width: float | None = 1.0
    units: list[str] = field(default_factory=lambda: list(UNITS))  # heads, qk and v (dimensions of heads), mlp
    criterion: str = "obs"  # which units: obs (second order), taylor, activation or magnitude
    allocation: str = "measured"  # how much of each layer: measured (output's KL), global (the scores), uniform
    refit: bool = True  # fit the weights that read what is left
    rounds: int = 1  # prune in so many steps, measuring anew after each
    images: int = 512  # calibration images for the moments
    loss_images: int = 64  # calibration images for measured losses
    damping: float = 0.1  # of refit, relative to the mean second moment of the inputs
    align: int = 8  # sizes are multiples of this
    include: list[str] = field(default_factory=lambda: ["*"])  # globs of attention and MLP module names
    exclude: list[str] = field(default_factory=list)  # of those, globs to leave


class TransformerPrune(Strategy):
    """Structured pruning of attention and MLPs; recovery training follows.

    Sources: ZipLM (arXiv 2302.04089) for choosing units and refitting, NViT (arXiv 2110.04869) for one budget over
    all kinds of units, Fisher pruning (arXiv 1801.05787) for `taylor`.
    """

    name: ClassVar[str] = "TransformerPrune"
    phase: ClassVar[Phase] = Phase.STRUCTURE
    Config: ClassVar[type] = TransformerPruneConfig
    touches: ClassVar[tuple[type[nn.Module], ...]] = unit_kinds()

    @classmethod
    def problems(cls, config: Any) -> list[str]:
        found = []
        if config.pruned_ratio is not None and not 0 < config.pruned_ratio < 1:
            found.append(f"pruned_ratio: {config.pruned_ratio}; allowed: between 0 and 1, a share of `of`")
        for key, allowed in (("of", COSTS), ("criterion", CRITERIA), ("allocation", ALLOCATIONS)):
            if getattr(config, key) not in allowed:
                found.append(f"{key}: {getattr(config, key)!r} is unknown; allowed: {', '.join(allowed)}")
        unknown = [unit for unit in config.units if unit not in UNITS]
        if unknown or not config.units:
            found.append(f"units: {unknown or 'empty'}; allowed: one or more of {', '.join(UNITS)}")
        if config.allocation == "global" and config.criterion == "obs":
            found.append("allocation: global adds up scores, which obs does not give; allowed: measured or uniform")
        if config.width is not None and not 0 < config.width <= 1:
            found.append(f"width: {config.width}; allowed: above 0, up to 1, or null, which chooses it")
        if config.width is None and config.allocation != "measured":
            found.append(
                f"width: null compares measured losses; allowed with allocation measured, not {config.allocation}"
            )
        for key in ("rounds", "images", "loss_images", "align"):
            if getattr(config, key) < 1:
                found.append(f"{key}: {getattr(config, key)}; allowed: 1 or more")
        if config.damping <= 0:
            found.append(f"damping: {config.damping}; allowed: above 0")
        return found

    def unsupported(self, model: nn.Module, ctx: Context) -> str | None:
        found = find_units(model)
        if found.groups or found.left:
            return None
        return "it has no attention (with num_heads, qkv or proj) and no MLP (with fc1 and fc2) as timm's models do"

    def select(self, model: nn.Module, ctx: Context) -> LayerPlan:
        if (reason := self.unsupported(model, ctx)) is not None:
            raise InputError(f"TransformerPrune: this model cannot be narrowed: {reason}; leave TransformerPrune out")
        found = self._found(model)
        known = {entry.name for entry in (*found.groups, *found.left)}
        products = analyze(model, ctx.input_size).products  # those of two activations are an attention's
        unknown = dict.fromkeys(p.module for p in products if not p.weighted and p.kind != "merge")
        left = [
            LayerLeft(name, f"no view of {type(model.get_submodule(name)).__name__} yet")
            for name in unknown
            if name not in known
        ]
        return LayerPlan(done=[group.name for group in found.groups], left=found.left + left)

    def prepare(self, model: nn.Module, ctx: Context) -> None:
        from act.structure.prune import prune_structure

        if not self.select(model, ctx).done:
            raise InputError(
                "TransformerPrune: nothing of this model can be removed; `vitcompress plan` has the reasons"
            )
        prune_structure(model, copy.deepcopy(model), self.config, self._found, ctx)

    def milder(self, model: nn.Module, ctx: Context) -> tuple[Any, str] | None:
        if self.config.pruned_ratio is None or self.config.pruned_ratio < LEAST_RATIO:
            return None
        half = self.config.pruned_ratio / 2
        return replace(self.config, pruned_ratio=half), f"pruned_ratio {half:g}"

    def partly_done(self, model: nn.Module, ctx: Context) -> list[LayerLeft]:
        """Parts of attentions that had to stay."""
        parts = []
        for group in self._found(model).groups:
            if isinstance(group, AttentionUnits):
                reasons = {"heads": group.heads_reason, "q, k": group.qk_reason, "v": group.v_reason}
                parts += [LayerLeft(f"{group.name} {part}", reason) for part, reason in reasons.items() if reason]
        return parts

    def invariants(self, model: nn.Module) -> list[Invariant]:
        bad = [problem for group in find_units(model).groups for problem in misfits(model, group)]
        return [Invariant("sizes of attention and MLPs fit together", not bad, "; ".join(bad))]

    def _found(self, model: nn.Module) -> Found:
        """The units of `model` that include and exclude let through, and units can take."""
        found = find_units(model)
        groups, left = [], list(found.left)
        for group in found.groups:
            attention = isinstance(group, AttentionUnits)
            if not any(fnmatchcase(group.name, glob) for glob in self.config.include):
                left.append(LayerLeft(group.name, "not matched by include"))
            elif any(fnmatchcase(group.name, glob) for glob in self.config.exclude):
                left.append(LayerLeft(group.name, "excluded"))
            elif not set(self.config.units) & ({"heads", "qk", "v"} if attention else {"mlp"}):
                left.append(LayerLeft(group.name, f"units are {', '.join(self.config.units)} only"))
            else:
                groups.append(group)
        return Found(groups, left)
