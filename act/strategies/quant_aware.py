"""QuantAware: training with fake quantisation and learned ranges (PACT or LSQ)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from act.quant.config import QuantConfig
from act.quant.fake_quant import FakeQuantize
from act.quant.prepare import partly_quantized, prepare_quantized, quant_invariants, quant_plan
from act.strategies.base import Invariant, LayerLeft, LayerPlan, Phase, Strategy

if TYPE_CHECKING:
    from act.context import Context

MILDER_SHARE = 0.1  # of the layers, given more precision when too much accuracy was lost


@dataclass
class QuantAwareConfig(QuantConfig):
    """Quantisation-aware training; it starts from the calibrated model."""

    use_pact: bool = True  # learn a clip per activation (two-sided where the tensor is signed)
    use_lsq: bool = False  # learn the step of activations and weights instead


class QuantAware(Strategy):
    """PACT (arXiv 1805.06085) or LSQ (arXiv 1902.08153). Neither: calibrated ranges stay as they are.

    With PACT or fixed ranges, weight scales stay as calibrated while the weights train around them.
    """

    name: ClassVar[str] = "QuantAware"
    phase: ClassVar[Phase] = Phase.QUANTIZATION
    Config: ClassVar[type] = QuantAwareConfig
    aliases: ClassVar[tuple[str, ...]] = ("Quantization",)
    excludes: ClassVar[tuple[str, ...]] = ("QuantPost",)

    @classmethod
    def problems(cls, config: Any) -> list[str]:
        found = list(config.problems())
        if config.use_pact and config.use_lsq:
            found.append("use_lsq: contradicts use_pact: true; allowed: one of the two (write use_pact: false)")
        return found

    @property
    def learn(self) -> str:
        """How ranges are learned: pact, lsq or fixed."""
        return "lsq" if self.config.use_lsq else "pact" if self.config.use_pact else "fixed"

    def select(self, model: nn.Module, ctx: Context) -> LayerPlan:
        return quant_plan(model, self.config, ctx)

    def prepare(self, model: nn.Module, ctx: Context) -> None:
        prepare_quantized(model, self.config, ctx, self.learn)

    def range_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        scales = [m.scale for m in model.modules() if isinstance(m, FakeQuantize)]
        return [scale for scale in scales if isinstance(scale, nn.Parameter)]

    def after_step(self, model: nn.Module, step: int, steps: int) -> dict[str, float]:
        for scale in self.range_parameters(model):
            scale.data.clamp_(min=1e-8)  # a step may overshoot; a scale must stay positive
        return {}

    def milder(self, model: nn.Module, ctx: Context) -> tuple[Any, str] | None:
        from act.sensitivity.worst import returning_precision

        return returning_precision(self.config, model, ctx, MILDER_SHARE)

    def remarks(self) -> list[str]:
        return [f"{self.name}.{text}" for text in self.config.remarks()]

    def partly_done(self, model: nn.Module, ctx: Context) -> list[LayerLeft]:
        return partly_quantized(model, self.config, ctx)

    def invariants(self, model: nn.Module) -> list[Invariant]:
        return quant_invariants(model)
