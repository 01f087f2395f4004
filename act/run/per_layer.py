"""What became of every layer, for the report: its zeros, its bits, its work, and how far its output moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from act.analysis import Product, analyze
from act.sparsity.reorder import reordered_like

if TYPE_CHECKING:
    from act.context import Context

IMAGES = 32
CHUNK = 2  # images at a time: the outputs of all of the original's layers are kept, 130 MB for two of ViT-B


def layer_figures(original: nn.Module, model: nn.Module, ctx: Context) -> dict[str, Any]:
    """The report's `layers`: `{"images": int, "entries": [...]}`, an entry per matrix product of the original.

    Entries, in call order, have `name` (of the module), `block` ('' outside), `kind` (qkv, qk^T, ...), `weighted`,
    `macs_before` and `macs` (0 where it was removed), `bits` of input and weight or of the two operands (32: floating
    point), `zeros` (percent of the weights, by a mask), and `output_error` where outputs can be compared. `images` is
    the number of calibration images for that, 0 without any.
    """
    before, after = (_grouped(analyze(net, ctx.input_size).products) for net in (original, model))
    errors: dict[str, float] = {}
    images = 0
    # Channels in another order would look like an error, so the original's are put into the same.
    reference = reordered_like(model, original, ctx.edits)
    if ctx.data is not None and ctx.data.has_calibration and reference is not None:
        # A caller's loader has batches of its own size.
        batches = [
            batch.images[start : start + CHUNK]
            for batch in ctx.data.calibration(IMAGES, CHUNK)
            for start in range(0, len(batch.images), CHUNK)
        ]
        images = sum(map(len, batches))
        layers = {name for name, _ in after if isinstance(model.get_submodule(name), nn.Linear | nn.Conv2d)}
        errors = output_errors(reference, model, layers, (batch.to(ctx.device) for batch in batches))
    entries = []
    for key in dict.fromkeys([*before, *after]):
        product = before.get(key, after.get(key))
        assert product is not None
        now = after.get(key)
        entry: dict[str, Any] = {
            "name": product.module,
            "block": product.block,
            "kind": product.kind,
            "weighted": product.weighted,
            "macs_before": before[key].macs if key in before else 0,
            "macs": now.macs if now is not None else 0,
            "bits": list((now or product).bits),
            "zeros": round(100 * (1 - (now or product).density), 4),
        }
        if product.weighted and product.module in errors:
            entry["output_error"] = errors[product.module]
        entries.append(entry)
    return {"images": images, "entries": entries}


def _grouped(products: Iterable[Product]) -> dict[tuple[str, int], Product]:
    """Products by module and by their place among those that it calls."""
    found: dict[tuple[str, int], Product] = {}
    counts: dict[str, int] = {}
    for product in products:
        number = counts.get(product.module, 0)
        counts[product.module] = number + 1
        found[product.module, number] = product
    return found


def output_errors(
    original: nn.Module, model: nn.Module, layers: Iterable[str], batches: Iterable[Tensor]
) -> dict[str, float]:
    """|y' - y| / |y| over all outputs y of each named layer in the original and y' in `model`, for the same images
    [B, C, H, W].

    Both models run whole. A layer that only one of them calls, or whose outputs have another shape there, is left out.
    """
    layers = list(layers)
    change, power = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    seen: set[str] = set()
    other_shape: set[str] = set()
    for images in batches:
        expected, found = _outputs(original, layers, images), _outputs(model, layers, images)
        for name in expected.keys() & found.keys():
            if expected[name].shape != found[name].shape:
                other_shape.add(name)
                continue
            seen.add(name)
            change[name] += float((found[name].float() - expected[name].float()).square().sum(dtype=torch.float64))
            power[name] += float(expected[name].float().square().sum(dtype=torch.float64))
    compared = [name for name in layers if name in seen - other_shape and power[name] > 0]
    return {name: round((change[name] / power[name]) ** 0.5, 6) for name in compared}


def _outputs(model: nn.Module, layers: Iterable[str], images: Tensor) -> Mapping[str, Tensor]:
    """What each named layer that `model` has returns on `images`."""
    caught: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            caught[name] = output

        return hook

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(keep(name)) for name in layers if name in modules]
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            model(images)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return caught
