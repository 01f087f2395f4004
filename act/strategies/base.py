"""What a strategy is, and the registry that finds them.

A strategy is one file in this folder with one subclass of `Strategy`, plus one YAML of defaults in
`configs/<Name>/`. Nothing else needs an edit: every module of this package is imported on first use of the
registry, and a class with a `name` registers itself.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from act.errors import InputError

if TYPE_CHECKING:
    from act.context import Context


class Phase(IntEnum):
    """Where a strategy stands in the pipeline; stages run in this order."""

    OBJECTIVE = 0  # not a stage: how every stage that trains recovers (Distillation)
    STRUCTURE = 1
    SPARSITY = 2
    QUANTIZATION = 3


@dataclass(frozen=True)
class LayerLeft:
    """A layer that a strategy could have touched and did not, and why."""

    name: str
    reason: str


@dataclass
class LayerPlan:
    """The layers a strategy will touch, in call order, and those it leaves.

    `edge` holds the layers that see the image (patch embedding) or make the logits (head), wherever they are listed.
    """

    done: list[str] = field(default_factory=list)
    left: list[LayerLeft] = field(default_factory=list)
    edge: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Invariant:
    """One promise of a strategy, checked after its stage, at the end and in the exported file."""

    name: str
    holds: bool
    detail: str = ""


class Strategy(ABC):
    """One compression method. `config` is an instance of `Config`, already validated field by field."""

    name: ClassVar[str] = ""
    phase: ClassVar[Phase]
    Config: ClassVar[type]
    aliases: ClassVar[tuple[str, ...]] = ()  # other spellings of the section (ACT's)
    excludes: ClassVar[tuple[str, ...]] = ()  # strategies that contradict this one
    touches: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Conv2d)  # every one is done or left, and listed
    trains: ClassVar[bool] = True  # whether recovery training follows `prepare`

    _registry: ClassVar[dict[str, type[Strategy]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.name:
            Strategy._registry[cls.name] = cls

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def problems(cls, config: Any) -> list[str]:
        """Impossible values or combinations within the section, each `key: what is wrong; what is allowed`."""
        return []

    def unsupported(self, model: nn.Module, ctx: Context) -> str | None:
        """Why no part of this model can be compressed so, None if it can; `select` raises InputError with it."""
        return None

    @abstractmethod
    def select(self, model: nn.Module, ctx: Context) -> LayerPlan:
        """Which layers this strategy will touch and leave. Light: shapes and names only, no data."""

    @abstractmethod
    def prepare(self, model: nn.Module, ctx: Context) -> None:
        """Turn `model` in place into its compressed form (through `ctx.edit`), ready for recovery training."""

    def before_step(self, model: nn.Module) -> None:
        """Called when the gradients of an optimiser step are complete, before they are clipped."""

    def after_step(self, model: nn.Module, step: int, steps: int) -> dict[str, float]:
        """Called after optimiser step `step` (1-based) of `steps`; returns values to log."""
        return {}

    def range_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Learned ranges (clips, steps), which train with their own learning rate and decay."""
        return []

    def finalize(self, model: nn.Module, ctx: Context) -> None:
        """Settle the state after the stage (bake masks into weights, freeze ranges)."""

    def milder(self, model: nn.Module, ctx: Context) -> tuple[Any, str] | None:
        """A config that compresses the original `model` less, and how, in words; None if there is none. Asked when the
        stage lost more accuracy than the target allows."""
        return None

    def settled(self, model: nn.Module, plan: LayerPlan) -> LayerPlan:
        """The `plan` of the model before as it came out in the prepared `model`, where measuring chose among layers."""
        return plan

    def partly_done(self, model: nn.Module, ctx: Context) -> list[LayerLeft]:
        """Layers of the prepared model that were touched, but less than asked, and why."""
        return []

    def remarks(self) -> list[str]:
        """What users should know before they rely on what this section makes, a sentence each: plan, log and report."""
        return []

    def facts(self, ctx: Context) -> dict[str, Any]:
        """What the stage's entry in the report holds beside that of every stage, read from `ctx.edits`."""
        return {}

    def invariants(self, model: nn.Module) -> list[Invariant]:
        """What must hold from now on."""
        return []


class Objective(ABC):
    """Loss terms of a training step, built once per stage. Several may be active; terms are summed."""

    @abstractmethod
    def losses(self, images: Tensor, labels: Tensor | None, output: Tensor) -> dict[str, Tensor]:
        """Weighted scalar terms by name for the student's `output` on a batch."""

    def parameters(self) -> list[nn.Parameter]:
        """Parameters of the objective's own (projections), trained along with the student's."""
        return []

    def models(self) -> list[nn.Module]:
        """The models that `losses` runs beside the student."""
        return []

    def close(self) -> None:
        """Remove hooks."""


def load_strategies() -> dict[str, type[Strategy]]:
    """Import every module of this package and return the registry, in phase order."""
    import act.strategies as package

    for info in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{info.name}")
    return dict(sorted(Strategy._registry.items(), key=lambda item: (item[1].phase, item[0])))


def find_strategy(name: str) -> type[Strategy]:
    """The class for a section name or one of its aliases; InputError with the nearest name otherwise."""
    known = load_strategies()
    if name in known:
        return known[name]
    for cls in known.values():
        if name in cls.aliases:
            return cls
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise InputError(f"{name}: no such strategy{hint}; known: {', '.join(known)}")
