"""`vitcompress analyze`: what a model costs, by block and by matrix product."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act.cli.common import json_argument
from act.cli.output import number, print_json, size, table
from act.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from act.analysis import Analysis, Product

HELP = "parameters, bytes, multiply-accumulates and bit operations of a model, by block and by kind of matrix product"
DESCRIPTION = """\
Runs one image through the model and counts every matrix product: multiply-accumulates (MACs) and bit operations
(BOPs: MACs x bits of the one operand x bits of the other, weights that a mask removed left out), by kind and by
block. For a run folder, the original beside the compressed model. Bytes are those of all tensors in packed storage.
docs/accounting.md has the definitions."""
EPILOG = """\
examples:
  vitcompress analyze vit_base_patch16_224
  vitcompress analyze runs/quickstart --json
  vitcompress analyze vit_tiny_patch16_224 model.kwargs.img_size=384 --time
"""
REPEATS = 5
LARGEST_SIDE = 4096  # pixels; a damaged file must not make us allocate without bound


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument(
        "model", metavar="MODEL|RUN_DIR", help="a timm model name, a recipe, or the folder of a finished run"
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="changes to the recipe")
    parser.add_argument(
        "--time",
        action="store_true",
        help="also time each product in torch, one image at a time, attention in its unfused form",
    )
    json_argument(parser)


def command(args: argparse.Namespace) -> int:
    """Count and print."""
    from act.analysis import analyze

    models, input_size, stored = _models(args.model, args.overrides)
    found = {name: analyze(model, input_size, REPEATS if args.time else 0) for name, model in models.items()}
    if args.json:
        items = {name: {"bytes": stored[name]} | as_json(item) for name, item in found.items()}
        print_json({"model": args.model, "input_size": list(input_size)} | items)
        return 0
    for name, item in found.items():
        _show(f"{args.model}: {name}" if len(found) > 1 else args.model, item, input_size, stored[name])
    if len(found) > 1:
        _show_change(list(found.values()), list(stored.values()))
    return 0


def as_json(found: Analysis) -> dict[str, Any]:
    """Totals, sums by kind and by block, and every product."""
    return {
        "params": found.params,
        "macs": found.macs,
        "bops": found.bops,
        "kinds": _sums(found, lambda product: product.kind),
        "blocks": _sums(found, lambda product: product.block),
        "products": [
            {
                "module": product.module,
                "block": product.block or None,
                "kind": product.kind,
                "macs": product.macs,
                "bits": list(product.bits),
                "density": round(product.density, 6),
                **({} if product.seconds is None else {"ms": round(1000 * product.seconds, 4)}),
            }
            for product in found.products
        ],
        **({"other_operators_ms": round(1000 * sum(found.rest.values()), 4)} if found.rest else {}),
    }


def _sums(found: Analysis, key: Callable[[Product], str]) -> list[dict[str, Any]]:
    """Parameters, MACs, their share in percent, BOPs and milliseconds of the products of each key."""
    groups: dict[str, list[Product]] = {}
    for product in found.products:
        groups.setdefault(key(product), []).append(product)
    rows = []
    for name, products in groups.items():
        macs = sum(product.macs for product in products)
        row: dict[str, Any] = {
            "name": name or "(outside blocks)",
            "params": sum(p.params for p in products),
            "macs": macs,
        }
        row |= {"share": round(100 * macs / max(found.macs, 1), 2), "bops": round(sum(p.bops for p in products))}
        row["bits"] = sorted({f"{p.bits[0]}x{p.bits[1]}" for p in products})
        row["density"] = round(sum(p.macs * p.density for p in products) / max(macs, 1), 4)
        if found.rest:
            row["ms"] = round(1000 * sum(p.seconds or 0.0 for p in products), 4)
        rows.append(row)
    return rows


def _show(title: str, found: Analysis, input_size: Sequence[int], stored: int) -> None:
    head = f"{title}, {'x'.join(map(str, input_size))}: {number(found.params)} parameters in {size(stored)}"
    print(f"{head}, {found.macs / 1e6:,.1f} M MACs, {found.bops / 1e9:,.1f} G BOPs")
    timed = ["ms"] if found.rest else []
    columns = ["parameters", "M MACs", "share %", "G BOPs", "bits", "density", *timed]
    for what, key in (("kind", lambda product: product.kind), ("block", lambda product: product.block)):
        rows = [
            [
                *(item["name"], number(item["params"]), f"{item['macs'] / 1e6:,.2f}", f"{item['share']:.2f}"),
                *(f"{item['bops'] / 1e9:,.2f}", " ".join(item["bits"]), f"{item['density']:.2f}"),
                *([f"{item['ms']:.2f}"] if timed else []),
            ]
            for item in _sums(found, key)
        ]
        right = [column for column in columns if column != "bits"]
        table(f"by {what}", [what, *columns], rows, right=right)
    if found.rest:
        products = sum(product.seconds or 0.0 for product in found.products)
        rest = sum(found.rest.values())
        print(f"products take {1000 * products:.2f} ms, all other operators {1000 * rest:.2f} ms")


def _show_change(found: Sequence[Analysis], stored: Sequence[int]) -> None:
    before, after = found
    print(
        f"compressed / original: parameters {after.params / before.params:.3f}, bytes {stored[1] / stored[0]:.3f}, "
        f"MACs {after.macs / before.macs:.3f}, BOPs {after.bops / before.bops:.4f}"
    )


Subjects = tuple[dict[str, "nn.Module"], tuple[int, int, int], dict[str, int]]


def _models(name: str, overrides: Sequence[str]) -> Subjects:
    """The models to analyse by title, the size of their input, and the bytes of their tensors in packed storage."""
    if name and Path(name).is_dir():
        if overrides:
            raise InputError(f"{overrides[0]}: a run folder is analysed as it is; leave key=value out")
        return _run_models(Path(name))
    from act.cli.nodes import _recipe
    from act.data.preprocess import resolve_preprocess
    from act.models import load_model
    from act.storage.sizes import tensor_bytes

    recipe = _recipe(name, list(overrides))
    model = load_model(recipe.model)
    return {"original": model}, resolve_preprocess(model, recipe.data).input_size, {"original": tensor_bytes(model, [])}


def _run_models(folder: Path) -> Subjects:
    from act.models import load_model
    from act.rebuild import load_model_folder, read_arch
    from act.recipe.schema import ModelConfig
    from act.run.reading import check_contained, read_json
    from act.storage.sizes import tensor_bytes

    check_contained(folder)
    artifact = folder / "artifact" if (folder / "artifact").is_dir() else folder
    arch = read_arch(artifact)
    base = arch["base"]
    if base is None:
        raise InputError(f"{folder}: its model came as a module from Python and cannot be built from its name")
    try:
        size = read_json(artifact / "preprocess.json")["input_size"]
        channels, height, width = (int(length) for length in size)
        if not all(0 < length <= LARGEST_SIDE for length in (channels, height, width)):
            raise ValueError(f"input_size {size}; allowed: lengths of 1 to {LARGEST_SIDE}")
    except (InputError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{artifact / 'preprocess.json'}: cannot be read: {error}; name a finished run") from error
    compressed = load_model_folder(artifact)  # first, since it checks what arch.json says of the base model
    kwargs = dict(base.get("kwargs") or {})
    original = load_model(ModelConfig(name=base["name"], num_classes=base.get("num_classes"), kwargs=kwargs))
    stored = {"original": tensor_bytes(original, []), "compressed": tensor_bytes(compressed, arch["edits"])}
    return {"original": original, "compressed": compressed}, (channels, height, width), stored
