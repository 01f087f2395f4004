"""The measurement: every unit treated alone, the model's outputs compared with the original's."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from act.analysis import analyze
from act.errors import InputError
from act.models import logits
from act.run.large_pages import large_pages
from act.sensitivity.forwards import Forwards
from act.sensitivity.treatments import Treatment, Unit
from act.strategies.base import LayerLeft


@dataclass(frozen=True)
class Sensitivity:
    """What one treatment of one layer, or group of units, costs while all else stays as it is.

    `layer`: its module name. `kind`: qkv, proj, fc1, ..., or the group's: heads, mlp, attention. `kl`: Kullback-Leibler
    divergence of the treated model's prediction from the original's, in nats, mean over images. `error`: norm of the
    logits' change over the norm of the original's logits. `agreement`: percent of images with the same prediction.
    `detail`: how the treatment came out here. `layers`: the linear and convolution layers it concerns.
    """

    layer: str
    kind: str
    treatment: str
    kl: float
    error: float
    agreement: float
    detail: str = ""
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """Progress: `done` of `units` units of a treatment, `seconds` until its last one at the pace so far.

    `units` is 0 while the treatment is being prepared, which for integers means calibration.
    """

    treatment: str
    layer: str
    done: int
    units: int
    seconds: float


@dataclass
class Measured:
    """`costs` in the order of treatments; `left`: what each treatment leaves, and why; `order`: modules as called."""

    images: int
    order: list[str]
    costs: list[Sensitivity] = field(default_factory=list)
    left: dict[str, list[LayerLeft]] = field(default_factory=dict)


@large_pages()
def measure_sensitivity(
    model: nn.Module,
    images: Iterable[Tensor],
    treatments: Sequence[Treatment],
    progress: Callable[[Step], None] | None = None,
) -> Measured:
    """Treat each unit of each treatment alone and compare the outputs with those of `model`, which stays as it is.

    `images`: batches [B, C, H, W] on the model's device, kept in memory (77 MB for 128 of 224 x 224), with one block's
    output and a copy of the model. A forward starts at the block of the changed layer where that is provably the same
    (`Forwards`). Raises InputError: no images, or the model's outputs are not finite.
    """
    batches = list(images)
    if not batches:
        raise InputError("data.train: no image to measure with; give data.train or data.calibration some")
    original = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        reference = [logits(original(batch)) for batch in batches]
    if not all(bool(part.isfinite().all()) for part in reference):
        raise InputError("model: its outputs on these images are not finite; check model.checkpoint")
    channels, height, width = batches[0].shape[1:]
    kinds = {product.module: product.kind for product in analyze(original, (channels, height, width)).products}
    result = Measured(sum(len(batch) for batch in batches), list(kinds))
    progress = progress or (lambda _: None)
    for treatment in treatments:
        progress(Step(treatment.name, "", 0, 0, 0.0))
        treated = copy.deepcopy(original)
        prepared = treatment.prepare(treated)
        result.left[treatment.name] = prepared.left
        found = _measure(treated, batches, reference, treatment.name, prepared.units, progress)
        for unit, (kl, error, agreement) in found:
            kind = unit.kind or kinds.get(unit.name, "other")
            result.costs.append(
                Sensitivity(unit.name, kind, treatment.name, kl, error, agreement, unit.detail, unit.layers)
            )
    return result


def _measure(
    model: nn.Module,
    batches: Sequence[Tensor],
    reference: Sequence[Tensor],
    name: str,
    units: Sequence[Unit],
    progress: Callable[[Step], None],
) -> Iterator[tuple[Unit, tuple[float, float, float]]]:
    if not units:
        return
    forwards = Forwards(model, list(dict.fromkeys(layer for unit in units for layer in unit.layers)), batches)
    ordered = sorted(units, key=lambda unit: forwards.start(unit.layers))
    begin, spent, done = time.monotonic(), 0, 0
    for unit in ordered:
        start = forwards.start(unit.layers)
        forwards.advance(start)
        with unit.applied():
            costs = compare(reference, forwards.outputs())
        done, spent = done + 1, spent + forwards.work(start)
        ahead = sum(forwards.work(forwards.start(other.layers)) for other in ordered[done:])
        progress(Step(name, unit.name, done, len(ordered), (time.monotonic() - begin) / spent * ahead))
        yield unit, costs


def compare(reference: Iterable[Tensor], outputs: Iterable[Tensor]) -> tuple[float, float, float]:
    """KL divergence (nats, mean over images), relative error and agreement (percent) of logits [B, classes]."""
    kl, change, power, same, images = 0.0, 0.0, 0.0, 0, 0
    for original, treated in zip(reference, outputs, strict=True):
        before, after = original.double(), treated.double()
        log_before, log_after = before.log_softmax(-1), after.log_softmax(-1)
        kl += float((log_before.exp() * (log_before - log_after)).sum())
        change += float((after - before).square().sum())
        power += float(before.square().sum())
        same += int((before.argmax(-1) == after.argmax(-1)).sum())
        images += len(before)
    return kl / images, (change / max(power, 1e-30)) ** 0.5, 100 * same / images
