"""QuantPost: int8 from calibration images alone, no training and no labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from act.quant.config import QuantConfig
from act.quant.prepare import partly_quantized, prepare_quantized, quant_invariants, quant_plan
from act.strategies.base import Invariant, LayerLeft, LayerPlan, Phase, Strategy

if TYPE_CHECKING:
    from act.context import Context

MILDER_SHARE = 0.1  # of the layers, given more precision when too much accuracy was lost


@dataclass
class QuantPostConfig(QuantConfig):
    """Post-training quantisation; the defaults are the settings that measured best."""


class QuantPost(Strategy):
    """Equalisation (arXiv 2211.10438), calibrated ranges, bias correction (arXiv 1906.04721)."""

    name: ClassVar[str] = "QuantPost"
    phase: ClassVar[Phase] = Phase.QUANTIZATION
    Config: ClassVar[type] = QuantPostConfig
    excludes: ClassVar[tuple[str, ...]] = ("QuantAware",)
    trains: ClassVar[bool] = False

    @classmethod
    def problems(cls, config: Any) -> list[str]:
        return list(config.problems())

    def select(self, model: nn.Module, ctx: Context) -> LayerPlan:
        return quant_plan(model, self.config, ctx)

    def prepare(self, model: nn.Module, ctx: Context) -> None:
        prepare_quantized(model, self.config, ctx, "fixed")

    def milder(self, model: nn.Module, ctx: Context) -> tuple[Any, str] | None:
        from act.sensitivity.worst import returning_precision

        return returning_precision(self.config, model, ctx, MILDER_SHARE)

    def remarks(self) -> list[str]:
        return [f"{self.name}.{text}" for text in self.config.remarks()]

    def partly_done(self, model: nn.Module, ctx: Context) -> list[LayerLeft]:
        return partly_quantized(model, self.config, ctx)

    def invariants(self, model: nn.Module) -> list[Invariant]:
        return quant_invariants(model)
