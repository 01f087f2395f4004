"""Prune: N:M sparsity (2:4 by default) in the weights of linear and convolution layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from act.calibration import CalibrationImages
from act.errors import InputError
from act.layers import CompressedLayer, compressed_layers
from act.selection import select_layers
from act.sparsity.masks import Pattern, flip_rate, nm_mask, nm_violations, parse_pattern
from act.sparsity.oneshot import oneshot_prune
from act.sparsity.permute import Kept
from act.sparsity.reorder import input_norms, order_gains, reorderable, search_groups
from act.sparsity.srste import decay_pruned
from act.strategies.base import Invariant, LayerLeft, LayerPlan, Phase, Strategy

if TYPE_CHECKING:
    from act.context import Context

CRITERIA = ("magnitude", "wanda", "sparsegpt")
MASKS = ("fixed", "sr-ste")
MILDER_SHARE = 0.25  # of the layers, left dense when too much accuracy was lost
FLIP_RATE = "mask_flip_rate"  # share of mask entries that a step changed; of one layer with its name behind a dot


@dataclass
class PruneConfig:
    """Semi-structured sparsity along the reduction axis of each GEMM."""

    pattern: str = "2:4"  # N:M, N kept of every M consecutive weights; "4:8 pairs" keeps 2 of 4 pairs
    criterion: str = "magnitude"  # magnitude; wanda and sparsegpt use calibration images, no labels
    mask: str = "fixed"  # fixed (ASP), or sr-ste: recomputed after every step
    decay: float = 2e-4  # SR-STE's pull of pruned weights towards zero, added to the gradient
    freeze_after: float = 1.0  # sr-ste: share of the steps after which masks stay
    permute: bool = False  # first reorder channels so that masks keep more; the dense model stays the same function
    images: int = 256  # calibration images of wanda and sparsegpt
    damping: float = 0.01  # sparsegpt: share of the mean Hessian diagonal added to it
    include: list[str] = field(default_factory=lambda: ["*"])  # globs of module names
    exclude: list[str] = field(default_factory=list)  # of those, globs to leave
    first_and_last: bool = False  # also prune the patch embedding and the head
    align: int = 16  # K and the output width must be multiples of this (sparse tensor cores)


class Prune(Strategy):
    """Masks are magnitude-based along K or come from a one-shot criterion; recovery training follows.

    Sources: ASP (arXiv 2104.08378), SR-STE (arXiv 2102.04010), SparseGPT (arXiv 2301.00774), Wanda (arXiv 2306.11695),
    permutation (Pool & Yu, Channel Permutations for N:M Sparsity, NeurIPS 2021).
    """

    name: ClassVar[str] = "Prune"
    phase: ClassVar[Phase] = Phase.SPARSITY
    Config: ClassVar[type] = PruneConfig
    aliases: ClassVar[tuple[str, ...]] = ("ASPPrune",)

    @classmethod
    def problems(cls, config: Any) -> list[str]:
        found = []
        try:
            parse_pattern(config.pattern)
        except ValueError as error:
            found.append(f"pattern: {error}; allowed: N:M with 0 < N < M, e.g. 2:4, or 4:8 pairs")
        if config.criterion not in CRITERIA:
            found.append(f"criterion: {config.criterion!r} is unknown; allowed: {', '.join(CRITERIA)}")
        if config.mask not in MASKS:
            found.append(f"mask: {config.mask!r} is unknown; allowed: {', '.join(MASKS)}")
        if config.decay < 0:
            found.append(f"decay: {config.decay} is negative; allowed: 0 or more")
        if not 0 <= config.freeze_after <= 1:
            found.append(f"freeze_after: {config.freeze_after}; allowed: 0 to 1, a share of the steps")
        if config.images < 1:
            found.append(f"images: {config.images}; allowed: 1 or more")
        if config.damping <= 0:
            found.append(f"damping: {config.damping}; allowed: above 0")
        if config.align < 1:
            found.append(f"align: {config.align}; allowed: 1 or more")
        return found

    def select(self, model: nn.Module, ctx: Context) -> LayerPlan:
        plan = self._layers(model, ctx)
        if self.config.permute:
            _, kept = reorderable(model, plan.done, self._pattern.m, ctx.input_size)
            plan.left += [LayerLeft(name, f"not reordered: {reason}") for name, reason in kept.items()]
        return plan

    def _layers(self, model: nn.Module, ctx: Context) -> LayerPlan:
        plan = select_layers(model, ctx.input_size, self.config.include, self.config.exclude)
        m = self._pattern.m
        done = []
        for name in plan.done:
            reason = self._reason_to_leave(model.get_submodule(name), name in plan.edge, m)
            if reason is None:
                done.append(name)
            else:
                plan.left.append(LayerLeft(name, reason))
        plan.done = done
        return plan

    @property
    def _pattern(self) -> Pattern:
        return parse_pattern(self.config.pattern)

    def _reason_to_leave(self, layer: nn.Module, edge: bool, m: int) -> str | None:
        weight: torch.Tensor = layer.weight  # type: ignore[assignment]
        out, k = weight.shape[0], weight[0].numel()
        if edge and not self.config.first_and_last:
            return "patch embedding or head: left dense unless first_and_last is true"
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            return f"grouped convolution (groups={layer.groups}): its GEMMs are too narrow"
        if weight.shape[1] % m:
            return f"{weight.shape[1]} inputs are not a multiple of {m}"
        if k % self.config.align or out % self.config.align:
            return f"K={k}, output={out}: not both multiples of align={self.config.align}"
        return None

    def prepare(self, model: nn.Module, ctx: Context) -> None:
        config = self.config
        names = self._layers(model, ctx).done
        if not names:
            raise InputError("Prune: no layer of this model can take the pattern; `vitcompress plan` lists the reasons")
        n, m, unit = self._pattern
        if config.permute:
            self._reorder(model, names, ctx)
        if config.criterion == "magnitude" or ctx.data is None:
            weights: dict[str, Tensor] = {name: model.get_submodule(name).weight for name in names}  # type: ignore[misc]
            masks = {name: nm_mask(weight.detach().abs(), n, m, unit) for name, weight in weights.items()}
        else:
            masks = oneshot_prune(
                model,
                names,
                CalibrationImages(ctx, config.images),
                n,
                m,
                config.criterion,
                unit=unit,
                damping=config.damping,
                progress=lambda line: ctx.log("prune", line),
            )
        ctx.edit(model, {"op": "mask", "layers": names, "pattern": config.pattern})
        for name, layer in self._masked(model):
            if name in masks:
                assert layer.weight_mask is not None
                layer.weight_mask.copy_(masks[name])
                layer.straight_through = config.mask == "sr-ste"
                if config.mask == "fixed":
                    layer.weight.data.mul_(layer.weight_mask)

    def _reorder(self, model: nn.Module, names: list[str], ctx: Context) -> None:
        """Search and apply the order of channels; log what it gains per layer and in all."""
        groups, _ = reorderable(model, names, self._pattern.m, ctx.input_size)
        readers = [name for group in groups for name in group.readers if name in names]
        norms: dict[str, Tensor] = {}
        if self.config.criterion != "magnitude" and ctx.data is not None:
            norms = input_norms(model, readers, CalibrationImages(ctx, self.config.images))
        total = Kept(0.0, 0.0, 0.0)

        def progress(name: str, kept: Kept) -> None:
            nonlocal total
            total += kept
            ctx.log("permute", f"{name}: {kept.text()}", layer=name, efficacy=kept.efficacy)

        ctx.edit(model, search_groups(model, groups, names, norms, self._pattern, ctx.recipe.seed, progress))
        ctx.log("permute", f"{len(readers)} layers reordered: {total.text()}", efficacy=total.efficacy)

    def before_step(self, model: nn.Module) -> None:
        if self.config.mask == "sr-ste":
            for _, layer in self._masked(model):
                assert layer.weight_mask is not None
                decay_pruned(layer.weight, layer.weight_mask, self.config.decay)

    def after_step(self, model: nn.Module, step: int, steps: int) -> dict[str, float]:
        if self.config.mask == "fixed" or step > self.config.freeze_after * steps:
            return {}
        rates, flipped, total = {}, 0.0, 0
        for name, layer in self._masked(model):
            assert layer.weight_mask is not None
            mask = nm_mask(layer.weight.detach().abs(), *self._pattern)
            rate = flip_rate(layer.weight_mask, mask)
            rates[f"{FLIP_RATE}.{name}"] = rate
            flipped += rate * mask.numel()
            total += mask.numel()
            layer.weight_mask.copy_(mask)
        return {FLIP_RATE: flipped / max(1, total)} | rates

    def finalize(self, model: nn.Module, ctx: Context) -> None:
        for _, layer in self._masked(model):
            assert layer.weight_mask is not None
            layer.weight.data.mul_(layer.weight_mask)
            layer.straight_through = False

    def facts(self, ctx: Context) -> dict[str, Any]:
        """`channel_order`: what a mask keeps of the scores before and after the permutation, in all and by layer."""
        gains = order_gains(ctx.edits)
        if not gains:
            return {}
        total = sum(gains.values(), Kept(0.0, 0.0, 0.0))
        layers = {name: gain.shares() for name, gain in gains.items()}
        return {"channel_order": {"all": total.shares(), "layers": layers}}

    def milder(self, model: nn.Module, ctx: Context) -> tuple[Any, str] | None:
        from act.sensitivity.worst import excluding_worst

        return excluding_worst(self.config, model, ctx, "sparsity", MILDER_SHARE)

    def invariants(self, model: nn.Module) -> list[Invariant]:
        bad = []
        for name, layer in self._masked(model):
            count = nm_violations(layer.effective_weight().detach(), *self._pattern)
            if count:
                bad.append(f"{name}: {count} groups with more nonzeros")
        return [Invariant(f"{self.config.pattern} along K", not bad, "; ".join(bad))]

    @staticmethod
    def _masked(model: nn.Module) -> list[tuple[str, CompressedLayer]]:
        return [(name, layer) for name, layer in compressed_layers(model) if layer.weight_mask is not None]
