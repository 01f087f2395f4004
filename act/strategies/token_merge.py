"""TokenMerge: a few tokens less after each attention, merged with those most like them."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from act.errors import InputError
from act.strategies.base import Invariant, LayerLeft, LayerPlan, Phase, Strategy
from act.tokens.blocks import MODES, AttentionCall, MergingAttention, TokenMerge, merging_blocks
from act.tokens.find import Mergeable, mergeable
from act.tokens.schedule import SCHEDULES, spread, within_reach

if TYPE_CHECKING:
    from act.context import Context

LAST = "the last block: only the classifier reads its tokens"
NONE = "no token to merge here"


@dataclass
class TokenMergeConfig:
    """How many tokens go where, and how."""

    tokens: int = 8  # merged per block (ToMe's r), on average where the schedule is decreasing
    keep: float | None = None  # in place of tokens: the share of the patch tokens that reaches the last block
    schedule: str = "constant"  # constant; decreasing: more in the first blocks, falling to 0
    mode: str = "merge"  # merge; prune drops the tokens that the class token attends to least
    proportional_attention: bool = True  # a merged token counts in attention as often as it stands for tokens
    include: list[str] = field(default_factory=lambda: ["*"])  # globs of names of blocks
    exclude: list[str] = field(default_factory=list)  # of those, globs to leave


class TokenMerging(Strategy):
    """Token merging with static shapes; sources: ToMe (arXiv 2210.09461), for `prune` EViT (arXiv 2202.07800)."""

    name: ClassVar[str] = "TokenMerge"
    phase: ClassVar[Phase] = Phase.STRUCTURE
    Config: ClassVar[type] = TokenMergeConfig
    touches: ClassVar[tuple[type[nn.Module], ...]] = ()  # it lists blocks, not layers

    @classmethod
    def problems(cls, config: Any) -> list[str]:
        found = []
        if config.tokens < 0:
            found.append(f"tokens: {config.tokens} is negative; allowed: 0 or more")
        if config.keep is not None and not 0 < config.keep <= 1:
            found.append(f"keep: {config.keep}; allowed: above 0, up to 1")
        if config.schedule not in SCHEDULES:
            found.append(f"schedule: {config.schedule!r} is unknown; allowed: {', '.join(SCHEDULES)}")
        if config.mode not in MODES:
            found.append(f"mode: {config.mode!r} is unknown; allowed: {', '.join(MODES)}")
        return found

    def unsupported(self, model: nn.Module, ctx: Context) -> str | None:
        found = mergeable(model, ctx.input_size)
        if isinstance(found, str):
            return found
        return "mode prune needs a class token" if self.config.mode == "prune" and not found.prefix else None

    def select(self, model: nn.Module, ctx: Context) -> LayerPlan:
        counts, left = self._counts(self._found(model, ctx))
        return LayerPlan([name for name, count in counts.items() if count], left)

    def prepare(self, model: nn.Module, ctx: Context) -> None:
        found = self._found(model, ctx)
        counts, _ = self._counts(found)
        tokens = found.tokens
        layers: dict[str, dict[str, int]] = {}
        for name in found.blocks:
            count = counts.get(name, 0)
            if count or layers:
                layers[name] = {"tokens": tokens, "count": count}
            tokens -= count
        config = self.config
        ctx.edit(
            model,
            {
                "op": "merge_tokens",
                "layers": layers,
                "prefix": found.prefix,
                "mode": config.mode,
                "proportional": config.proportional_attention,
            },
        )
        path = " -> ".join(map(str, dict.fromkeys([entry["tokens"] for entry in layers.values()] + [tokens])))
        ctx.log("tokens", f"  tokens per block: {path}", layers=layers)

    def invariants(self, model: nn.Module) -> list[Invariant]:
        blocks = merging_blocks(model)
        wrong = [name for name in blocks if not isinstance(model.get_submodule(f"{name}.attn"), MergingAttention)]
        tokens = next((merge.tokens for merge in blocks.values()), 0)
        path = [tokens]
        for name, merge in blocks.items():
            after, kept_all = _try(merge)
            if merge.tokens != tokens or after != tokens - merge.count or not kept_all:
                wrong.append(name)
            tokens = after
            path.append(after)
        holds = bool(blocks) and not wrong
        return [Invariant("tokens fall as planned", holds, ", ".join(wrong) or " -> ".join(map(str, path)))]

    def _found(self, model: nn.Module, ctx: Context) -> Mergeable:
        reason = self.unsupported(model, ctx)
        if reason is not None:
            raise InputError(f"TokenMerge: this model cannot merge tokens: {reason}; leave TokenMerge out")
        found = mergeable(model, ctx.input_size)
        assert isinstance(found, Mergeable)
        return found

    def _counts(self, found: Mergeable) -> tuple[dict[str, int], list[LayerLeft]]:
        """Tokens to take away in each block that takes part; the other blocks with the reason."""
        config = self.config
        left = {found.blocks[-1]: LAST}
        for name in found.blocks[:-1]:
            if not any(fnmatchcase(name, glob) for glob in config.include):
                left[name] = "not matched by include"
            elif any(fnmatchcase(name, glob) for glob in config.exclude):
                left[name] = "matched by exclude"
        names = [name for name in found.blocks if name not in left]
        patches = found.tokens - found.prefix
        total = config.tokens * len(names) if config.keep is None else patches - round(config.keep * patches)
        wanted = spread(total, len(names), config.schedule) if names else []
        counts = dict(zip(names, within_reach(wanted, found.tokens, found.prefix), strict=True))
        if not any(counts.values()):
            raise InputError(
                "TokenMerge: no block would merge a token; allowed: tokens of 1 or more (or keep below 1), and an "
                "include that matches a block before the last"
            )
        left |= {name: NONE for name, count in counts.items() if not count}
        return counts, [LayerLeft(name, left[name]) for name in found.blocks if name in left]


def _try(merge: TokenMerge) -> tuple[int, bool]:
    """How many tokens come out of it, and whether they stand for as many as went in (or it drops some on purpose)."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, merge.tokens, 4, generator=random)
    query, keys = torch.randn(2, 1, 2, merge.tokens, 4, generator=random)
    y, sizes = merge(x, torch.ones(1, merge.tokens, 1), AttentionCall(None, query, keys))
    kept_all = merge.mode == "prune" or (sizes is not None and round(float(sizes.sum())) == merge.tokens)
    return int(y.shape[1]), kept_all
