"""Streams of bit fields: whole numbers of 1 to 8 bits without gaps, least significant bit first.

Fields of 4 bits thus lie two in a byte, the first in the low half; those of 2 bits four in a byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def stream_bytes(bits: int, count: int) -> int:
    """Bytes that `count` fields of `bits` bits take."""
    return (bits * count + 7) // 8


def pack_fields(values: npt.NDArray[Any], bits: int) -> Bytes:
    """The low `bits` bits of each value (uint8 or int8, any shape) as a stream; two's complement for int8."""
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    if bits == 8:
        return flat.copy()
    each = np.unpackbits(flat, bitorder="little").reshape(-1, 8)[:, :bits]
    return np.packbits(each, bitorder="little")


def unpack_fields(stream: Bytes, bits: int, count: int) -> Bytes:
    """The first `count` fields of `bits` bits of a stream, as uint8 [count]."""
    if bits == 8:
        return stream[:count].copy()
    each = np.zeros((count, 8), np.uint8)
    each[:, :bits] = np.unpackbits(stream, count=bits * count, bitorder="little").reshape(count, bits)
    return np.packbits(each, bitorder="little")


def signed(fields: Bytes, bits: int) -> npt.NDArray[np.int8]:
    """Fields of `bits` bits read as two's complement, int8."""
    half = np.uint8(1 << (bits - 1))
    return ((fields ^ half) - half).view(np.int8)
