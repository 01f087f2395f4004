"""Many layer names as few words."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBERED = re.compile(r"(?:.*_)?([0-9]+)")  # blocks.0 of timm, layers.encoder_layer_0 of torchvision


def number_of(part: str) -> str:
    """The number that a part of a module's name is, or ends in after an underscore; '' for none."""
    found = _NUMBERED.fullmatch(part)
    return found[1] if found else ""


def shorten(names: Iterable[str]) -> str:
    """Layer names with their block numbers folded: blocks.0.attn.qkv, blocks.1.attn.qkv -> blocks.{0-1}.attn.qkv."""
    found: dict[str, list[int]] = {}
    for name in names:
        parts = name.split(".")
        # The last number is the position in its stage; earlier ones (Swin's stages) stay written out.
        at = max((index for index, part in enumerate(parts) if number_of(part)), default=None)
        number = "" if at is None else number_of(parts[at])
        key = name if at is None else ".".join([*parts[:at], parts[at].removesuffix(number) + "*", *parts[at + 1 :]])
        found.setdefault(key, []).extend([int(number)] if number else [])
    return ", ".join(key.replace("*", _span(numbers)) if numbers else key for key, numbers in found.items())


def _span(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    if sorted(numbers) == list(range(min(numbers), max(numbers) + 1)):
        return f"{{{min(numbers)}-{max(numbers)}}}"
    return "{" + ",".join(map(str, sorted(numbers))) + "}"
