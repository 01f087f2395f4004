"""One weight to streams of bytes and back, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from act.sparsity.masks import from_gemm_rows, gemm_rows
from act.storage.fields import pack_fields, signed, unpack_fields
from act.storage.layout import FLOAT_BITS, Layout

Array = npt.NDArray[Any]
VALUES, INDICES = "values", "indices"
_BOTH = 0x0101


def in_pairs(mask: Tensor) -> bool:
    """Whether a mask [out, in, ...] keeps or drops every two neighbours along K together."""
    rows = gemm_rows(mask).contiguous().numpy()
    if rows.shape[1] % 2:
        return False
    both = rows.view(np.uint16)  # two truth values each
    return bool(((both == 0) | (both == _BOTH)).all())


def pack_weight(weight: Tensor, layout: Layout, mask: Tensor | None = None) -> dict[str, Tensor]:
    """`weight` (int8 codes, or float32) of the layout's shape as `values` and, unless it is dense, `indices`.

    `mask` (bool, same shape) says which values are kept, by default those that are not zero. Groups that keep fewer
    are filled up with their first zeros. Both streams are uint8, values of 32 bits are float32. ValueError if a group
    keeps more than the pattern allows, or a value outside the mask is not zero.
    """
    rows = gemm_rows(weight).contiguous().numpy()
    if layout.dense:
        return {VALUES: _stored(rows, layout)}
    nonzero = rows != 0
    kept = nonzero if mask is None else gemm_rows(mask).contiguous().numpy()
    if mask is not None and bool((nonzero & ~kept).any()):
        raise ValueError("values that the mask removed are not zero")
    groups: Array = np.logical_or.reduce(kept.reshape(-1, layout.units, layout.unit), axis=-1)
    free = np.full(len(groups), layout.kept // layout.unit, np.int16)
    for column in groups.T:  # numpy is slow at sums along a short axis
        free -= column
    if int(free.min()) < 0:
        raise ValueError(f"{int((free < 0).sum())} groups keep more than {layout.kept} of {layout.group}")
    if free.any():
        groups |= np.cumsum(~groups, axis=1, dtype=np.int16) <= free[:, None]
    places = np.flatnonzero(groups.reshape(-1))
    indices = (places % layout.units).astype(np.uint8)
    values = rows.reshape(-1, layout.unit)[places]
    return {VALUES: _stored(values, layout), INDICES: torch.from_numpy(pack_fields(indices, layout.index_bits))}


def unpack_weight(layout: Layout, stored: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """The weight that `pack_weight` stored, and the mask (bool) of its stored places, None for a dense one.

    The sizes of `stored` must be those of the layout. ValueError for places out of order and for codes that no
    quantiser makes.
    """
    if layout.bits == FLOAT_BITS:
        values: Array = stored[VALUES].numpy()
    else:
        values = signed(unpack_fields(stored[VALUES].numpy(), layout.bits, layout.values), layout.bits)
        if int(values.min()) < -(1 << (layout.bits - 1)) + 1:
            raise ValueError(f"a code of {layout.bits} bits is below the smallest, {-(1 << (layout.bits - 1)) + 1}")
    shape = torch.Size(layout.shape)
    if layout.dense:
        return from_gemm_rows(torch.from_numpy(values).reshape(shape[0], -1), shape).contiguous(), None
    indices = unpack_fields(stored[INDICES].numpy(), layout.index_bits, layout.indices)
    indices = indices.reshape(-1, layout.kept // layout.unit)
    if int(indices.max()) >= layout.units or not bool((indices[:, :-1] < indices[:, 1:]).all()):
        raise ValueError("the places of a group are not in rising order")
    places = (np.arange(len(indices))[:, None] * layout.units + indices).reshape(-1)
    rows = np.zeros((layout.size // layout.unit, layout.unit), values.dtype)
    rows[places] = values.reshape(-1, layout.unit)
    mask = np.zeros(rows.shape, np.bool_)
    mask[places] = True
    whole = (torch.from_numpy(array).reshape(shape[0], -1) for array in (rows, mask))
    weight, kept = (from_gemm_rows(array, shape).contiguous() for array in whole)
    return weight, kept


def _stored(values: Array, layout: Layout) -> Tensor:
    if layout.bits == FLOAT_BITS:
        return torch.from_numpy(np.ascontiguousarray(values).reshape(-1))
    return torch.from_numpy(pack_fields(values, layout.bits))
