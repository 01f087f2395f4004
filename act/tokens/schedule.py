"""How many tokens each block merges."""

from __future__ import annotations

from collections.abc import Sequence

from act.tokens.matching import most_merged

SCHEDULES = ("constant", "decreasing")


def spread(total: int, blocks: int, schedule: str) -> list[int]:
    """`total` tokens over `blocks`: equal shares, or shares that fall evenly to 0 at the last (arXiv 2210.09461)."""
    shares = [1.0] * blocks if schedule == "constant" or blocks == 1 else [float(blocks - 1 - i) for i in range(blocks)]
    ends = [round(total * sum(shares[: i + 1]) / sum(shares)) for i in range(blocks)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def within_reach(wanted: Sequence[int], tokens: int, prefix: int) -> list[int]:
    """What each block really merges, one after the other: never more than half of its tokens after the prefix."""
    counts = []
    for count in wanted:
        counts.append(min(count, most_merged(tokens, prefix)))
        tokens -= counts[-1]
    return counts
