"""How one weight is stored, and what follows from it: how many values and indices there are, and in how many bytes.

Weights lie in the order of their GEMM, [out, K] with the input channels innermost. An N:M weight keeps N of every M
consecutive values along K, in units of one value (`singles`) or of two neighbours (`pairs`, the form of sparse 4-bit
hardware: 4:8 keeps 2 of 4 pairs). Per kept unit the file holds its values and its place within the group:

    int8 2:4      2 x 8 + 2 x 2 = 20 bits for 4 weights, 5 bits a weight, 32 / 5 = 6.4 times smaller than float32
    int4 2:4      2 x 4 + 2 x 2 = 12 bits for 4 weights, 3 bits a weight, 10.7 times
    int4 4:8 in pairs   4 x 4 + 2 x 2 = 20 bits for 8 weights, 2.5 bits a weight, 12.8 times
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from act.storage.fields import stream_bytes

DENSE, SINGLES, PAIRS = "dense", "singles", "pairs"
FLOAT_BITS = 32
_UNITS = {SINGLES: 1, PAIRS: 2}
_LARGEST_M = 256  # an index has at most 8 bits
_KEYS = {"shape", "bits", "layout", "pattern", "group_size"}
_PATTERN = re.compile(r"\s*([0-9]{1,4}):([0-9]{1,4})\b.*")


@dataclass(frozen=True)
class Layout:
    """The stored form of a weight of `shape`.

    `bits` of a value: 2 to 8 for integers, 32 for float32. `kept` of every `group` consecutive values are stored, in
    units of `unit` neighbours; 1 of 1 for a dense weight. `group_size` values along K have one scale, 0: a channel.
    """

    shape: tuple[int, ...]
    bits: int
    kept: int = 1
    group: int = 1
    unit: int = 1
    group_size: int = 0

    @property
    def dense(self) -> bool:
        """Whether every value is stored."""
        return self.group == 1

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def values(self) -> int:
        """Number of values stored."""
        return self.size // self.group * self.kept

    @property
    def units(self) -> int:
        """Units in a group."""
        return self.group // self.unit

    @property
    def indices(self) -> int:
        """Number of places stored, one for each kept unit."""
        return 0 if self.dense else self.values // self.unit

    @property
    def index_bits(self) -> int:
        """Bits of a place within its group."""
        return (self.units - 1).bit_length()

    @property
    def value_bytes(self) -> int:
        """Bytes of all values."""
        return stream_bytes(self.bits, self.values)

    @property
    def index_bytes(self) -> int:
        """Bytes of all places."""
        return stream_bytes(self.index_bits, self.indices)

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Shape of the scales of an integer weight."""
        out = self.shape[:1]
        return (*out, self.shape[1] // self.group_size) if self.group_size else out

    def label(self) -> str:
        """For people: `int4 4:8 pairs`."""
        kind = "float" if self.bits == FLOAT_BITS else f"int{self.bits}"
        form = DENSE if self.dense else f"{self.kept}:{self.group}"
        return f"{kind} {form} pairs" if self.unit == 2 else f"{kind} {form}"

    def problem(self) -> str | None:
        """Why there can be no such layout, None if there can."""
        if not 2 <= len(self.shape) <= 5 or min(self.shape) < 1:
            return f"shape {list(self.shape)}; allowed: 2 to 5 lengths of 1 or more"
        if not (2 <= self.bits <= 8 or self.bits == FLOAT_BITS):
            return f"bits {self.bits}; allowed: 2 to 8, or {FLOAT_BITS} for floats"
        if not self.dense and not (1 <= self.kept < self.group <= _LARGEST_M):
            return f"pattern {self.kept}:{self.group}; allowed: N:M with 1 <= N < M <= {_LARGEST_M}"
        if self.kept % self.unit or self.group % self.unit:
            return f"pattern {self.kept}:{self.group} in pairs; allowed: even numbers"
        if self.shape[1] % self.group:
            return f"pattern {self.kept}:{self.group}, whose groups do not divide its {self.shape[1]} inputs"
        fits = len(self.shape) == 2 and 0 < self.group_size < self.shape[1] and self.shape[1] % self.group_size == 0
        if self.group_size and (not fits or self.bits == FLOAT_BITS):
            return f"group_size {self.group_size}; allowed: 0, or a divisor of the K of an integer linear weight"
        return None

    def as_json(self) -> dict[str, Any]:
        """The entry of the file's header."""
        return {
            "shape": list(self.shape),
            "bits": self.bits,
            "layout": DENSE if self.dense else PAIRS if self.unit == 2 else SINGLES,
            "pattern": None if self.dense else f"{self.kept}:{self.group}",
            "group_size": self.group_size,
        }

    @classmethod
    def from_json(cls, entry: Any) -> Layout:
        """The inverse of `as_json`; ValueError saying what is wrong with any other value."""
        if not isinstance(entry, dict) or set(entry) != _KEYS:
            raise ValueError(f"must be an object with {', '.join(sorted(_KEYS))} and nothing else")
        shape, layout, pattern = entry["shape"], entry["layout"], entry["pattern"]
        whole = [entry["bits"], entry["group_size"], *(shape if isinstance(shape, list) else [None])]
        if not all(type(number) is int for number in whole):
            raise ValueError("shape, bits and group_size must be whole numbers")
        if layout == DENSE and pattern is None:
            kept = group = unit = 1
        elif layout in (SINGLES, PAIRS) and isinstance(pattern, str):
            kept, group = numbers(pattern)
            unit = _UNITS[layout]
        else:
            raise ValueError(
                f"layout {layout!r} with pattern {pattern!r}; allowed: {DENSE} with null, {SINGLES} or {PAIRS} with N:M"
            )
        found = cls(tuple(shape), entry["bits"], kept, group, unit, entry["group_size"])
        problem = found.problem()
        if problem is not None:
            raise ValueError(problem)
        if found.as_json() != entry:
            raise ValueError(f"pattern {pattern!r}; allowed: N:M without anything around it, and M above 1")
        return found


def numbers(pattern: str) -> tuple[int, int]:
    """(N, M) of a pattern `N:M`, whatever follows it; ValueError if it does not begin so."""
    match = _PATTERN.fullmatch(pattern)
    if match is None:
        raise ValueError(f"pattern {pattern[:40]!r}; allowed: N:M, for example 2:4")
    return int(match[1]), int(match[2])
