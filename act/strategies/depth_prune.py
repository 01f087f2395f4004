"""DepthPrune: whole blocks removed, those that the outputs need least; the rest is recovered by training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from act.calibration import CalibrationImages
from act.depth.find import removable_blocks
from act.depth.remove import Removed, removed_blocks
from act.depth.score import block_distances, least_needed
from act.errors import InputError
from act.strategies.base import Invariant, LayerLeft, LayerPlan, Phase, Strategy

if TYPE_CHECKING:
    from act.context import Context

CRITERIA = ("output", "cosine", "names")


@dataclass
class DepthPruneConfig:
    """How many blocks go, and which."""

    blocks: int | float = 1  # how many; below 1 a share of those that can go, rounded
    criterion: str = "output"  # output (KL, greedy) or cosine (input against output), on training images; or names
    names: list[str] = field(default_factory=list)  # criterion names: the blocks to remove
    images: int = 64  # calibration images of output and cosine
    include: list[str] = field(default_factory=lambda: ["*"])  # globs of module names
    exclude: list[str] = field(default_factory=list)  # of those, globs to leave


class DepthPrune(Strategy):
    """Fewer blocks: every runtime gains what they cost.

    Sources: SLEB (arXiv 2402.09025) for the criterion `output`, ShortGPT (arXiv 2403.03853) for `cosine`.
    """

    name: ClassVar[str] = "DepthPrune"
    phase: ClassVar[Phase] = Phase.STRUCTURE
    Config: ClassVar[type] = DepthPruneConfig
    touches: ClassVar[tuple[type[nn.Module], ...]] = ()  # it lists blocks, not layers

    @classmethod
    def problems(cls, config: Any) -> list[str]:
        found = []
        if config.criterion not in CRITERIA:
            found.append(f"criterion: {config.criterion!r} is unknown; allowed: {', '.join(CRITERIA)}")
        if config.blocks <= 0 or (config.blocks >= 1 and config.blocks != int(config.blocks)):
            found.append(f"blocks: {config.blocks}; allowed: a whole number from 1 on, or a share between 0 and 1")
        if (config.criterion == "names") != bool(config.names):
            found.append("names: goes with criterion: names, and lists the blocks to remove, e.g. [blocks.4, blocks.7]")
        if config.images < 1:
            found.append(f"images: {config.images}; allowed: 1 or more")
        return found

    def select(self, model: nn.Module, ctx: Context) -> LayerPlan:
        """The blocks to choose from (criterion names: those to remove)."""
        config = self.config
        plan = removable_blocks(model, ctx.input_size, config.include, config.exclude)
        if config.criterion == "names":
            reasons = {left.name: left.reason for left in plan.left}
            wrong = {name: reasons.get(name, "no such block") for name in config.names if name not in plan.done}
            if wrong:
                allowed = ", ".join(plan.done)
                raise InputError(
                    [f"DepthPrune.names: {name}: {why}; allowed: {allowed}" for name, why in wrong.items()]
                )
            plan.left += [LayerLeft(name, "not in names") for name in plan.done if name not in config.names]
            plan.done = [name for name in plan.done if name in config.names]
        elif self._count(len(plan.done)) >= len(plan.done):
            raise InputError(
                f"DepthPrune.blocks: {config.blocks} of the {len(plan.done)} that can go; allowed: fewer than these, "
                "since one has to stay"
            )
        return plan

    def prepare(self, model: nn.Module, ctx: Context) -> None:
        names = self.select(model, ctx).done
        ctx.edit(model, {"op": "remove_blocks", "layers": self._chosen(model, names, ctx)})

    def settled(self, model: nn.Module, plan: LayerPlan) -> LayerPlan:
        gone = removed_blocks(model)
        kept = [LayerLeft(name, "kept: the outputs need it more than those removed") for name in plan.done]
        left = plan.left + [layer for layer in kept if layer.name not in gone]
        return LayerPlan([name for name in plan.done if name in gone], left)

    def invariants(self, model: nn.Module) -> list[Invariant]:
        gone = {name: module for name, module in model.named_modules() if isinstance(module, Removed)}
        wrong = [name for name, module in gone.items() if module.together != len(gone) or any(module.parameters())]
        config = self.config
        wanted = len(config.names) or (config.blocks if config.blocks >= 1 else len(gone))
        holds = bool(gone) and not wrong and len(gone) == wanted
        return [Invariant("blocks are removed", holds, f"{len(gone)} of {wanted}: {', '.join(gone)}")]

    def _count(self, of: int) -> int:
        """How many of `of` blocks go."""
        blocks = self.config.blocks
        return int(blocks) if blocks >= 1 else max(1, round(blocks * of))

    def _chosen(self, model: nn.Module, names: list[str], ctx: Context) -> list[str]:
        config = self.config
        if config.criterion == "names":
            return names
        images, count = CalibrationImages(ctx, config.images), self._count(len(names))
        training = model.training
        model.eval()
        try:
            if config.criterion == "cosine":
                found = block_distances(model, names, images)
                chosen = sorted(found, key=lambda name: found[name])[:count]
            else:
                found = least_needed(model, names, images, count, lambda line: ctx.log("depth", f"  {line}"))
                chosen = list(found)
        finally:
            model.train(training)
        ctx.log("depth", f"  removes {', '.join(chosen)} of {len(names)} blocks", scores=found)
        return [name for name in names if name in chosen]
