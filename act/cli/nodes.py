"""`vitcompress nodes`: the modules of a model that a Distillation node may name."""

from __future__ import annotations

import argparse
import fnmatch
from typing import TYPE_CHECKING, Any

from act.cli.common import json_argument
from act.cli.output import number, print_json, table
from act.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from act.recipe.schema import Recipe

HELP = "list the modules of a model, with the shape of their output"
DESCRIPTION = """\
Builds the model, runs it once on a black image, and lists every module that was called and returns a tensor: these
are the names that `Distillation: {node: [...]}` and the include and exclude globs take."""
EPILOG = """\
examples:
  vitcompress nodes deit_tiny_patch16_224 --pattern 'blocks.*'
  vitcompress nodes deit_tiny_patch16_224 --pattern 'blocks.?' --json
  vitcompress nodes recipe.yaml model.kwargs.img_size=64
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument(
        "model", metavar="MODEL", help="a timm model name, a recipe file or the name of a shipped or pulled recipe"
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="changes to the recipe")
    parser.add_argument("--pattern", metavar="GLOB", help="only names that match, e.g. 'blocks.*.attn'")
    json_argument(parser)


def command(args: argparse.Namespace) -> int:
    """Print the modules."""
    from act.data.preprocess import resolve_preprocess
    from act.models import load_model

    recipe = _recipe(args.model, args.overrides)
    model = load_model(recipe.model)
    input_size = resolve_preprocess(model, recipe.data).input_size
    found = list_nodes(model, input_size)
    chosen = [node for node in found if args.pattern is None or fnmatch.fnmatchcase(node["name"], args.pattern)]
    if not chosen:
        raise InputError(f"--pattern: no module of {recipe.model.name} matches {args.pattern!r}; * also matches dots")
    if args.json:
        print_json(chosen)
        return 0
    shape = " x ".join(map(str, input_size))
    rows = [
        [node["name"], node["type"], " x ".join(map(str, node["shape"])), number(node["parameters"])] for node in chosen
    ]
    title = f"{recipe.model.name}: {len(chosen)} of {len(found)} modules, input {shape} (shapes without the batch)"
    table(title, ["module", "type", "output", "parameters"], rows, right=["parameters"])
    return 0


def list_nodes(model: nn.Module, input_size: tuple[int, int, int]) -> list[dict[str, Any]]:
    """Name, type, output shape (without the batch) and parameters of each module that a forward calls."""
    from torch import Tensor

    from act.estimate import run_once

    shapes: dict[str, list[int]] = {}

    def record(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                shapes[name] = list(output.shape[1:])

        return hook

    modules = [(name, module) for name, module in model.named_modules() if name]
    run_once(model, input_size, [module.register_forward_hook(record(name)) for name, module in modules])
    return [
        {
            "name": name,
            "type": type(module).__name__,
            "shape": shapes[name],
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
        }
        for name, module in modules
        if name in shapes
    ]


def _recipe(name: str, overrides: list[str]) -> Recipe:
    """The recipe called `name`, or one that has only the timm model of that name."""
    from act.recipe.load import load_recipe, recipe_from_dict
    from act.recipe.paths import is_recipe

    if is_recipe(name):
        return load_recipe(name, overrides)
    return recipe_from_dict({"model": {"name": name}}, overrides, source="MODEL")
