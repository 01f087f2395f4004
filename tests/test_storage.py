"""Packed weights: every shape, width and pattern comes back exactly, in the bytes that the arithmetic says."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from act.sparsity.masks import from_gemm_rows, gemm_rows, nm_mask, nm_violations
from act.storage.codec import INDICES, VALUES, in_pairs, pack_weight, unpack_weight
from act.storage.fields import pack_fields, signed, stream_bytes, unpack_fields
from act.storage.layout import Layout, numbers

PATTERNS = [
    (1, 1, 1),
    (2, 4, 1),
    (1, 4, 1),
    (4, 8, 1),
    (2, 8, 1),
    (3, 5, 1),
    (4, 8, 2),
    (2, 4, 2),
    (2, 8, 2),
    (1, 32, 1),
]


def sparse(shape: tuple[int, ...], layout: Layout, density: float, seed: int) -> tuple[Tensor, Tensor | None]:
    """Random codes of the layout and their mask; `density` of the kept codes are not zero."""
    generator = torch.Generator().manual_seed(seed)
    largest = (1 << (min(layout.bits, 8) - 1)) - 1
    codes = torch.randint(-largest, largest + 1, shape, generator=generator)
    codes *= torch.rand(shape, generator=generator) < density
    weight = codes.float() * 0.37 if layout.bits == 32 else codes.to(torch.int8)
    if layout.dense:
        return weight, None
    score = torch.rand(shape[0], gemm_rows(codes).shape[1] // layout.unit, generator=generator)
    units = nm_mask(score, layout.kept // layout.unit, layout.units)
    mask = from_gemm_rows(units.repeat_interleave(layout.unit, 1), torch.Size(shape))
    return weight * mask, mask


@st.composite
def weights(draw: st.DrawFn) -> tuple[Layout, Tensor, Tensor | None]:
    kept, group, unit = draw(st.sampled_from(PATTERNS))
    shape = (draw(st.integers(1, 5)), group * draw(st.integers(1, 4)))
    shape += draw(st.sampled_from([(), (1, 1), (3, 2)]))
    layout = Layout(shape, draw(st.sampled_from([2, 3, 4, 5, 7, 8, 32])), kept, group, unit)
    weight, mask = sparse(shape, layout, draw(st.sampled_from([0.0, 0.1, 0.6, 1.0])), draw(st.integers(0, 99)))
    return layout, weight, mask


@settings(max_examples=150, deadline=None)
@given(weights())
def test_round_trip(case: tuple[Layout, Tensor, Tensor | None]) -> None:
    layout, weight, mask = case
    assert layout.problem() is None and Layout.from_json(layout.as_json()) == layout
    parts = pack_weight(weight, layout, mask)
    assert parts[VALUES].nbytes == layout.value_bytes
    assert sum(part.nbytes for part in parts.values()) == layout.value_bytes + layout.index_bytes
    back, kept = unpack_weight(layout, parts)
    assert back.dtype == weight.dtype and torch.equal(back, weight)
    assert (kept is None and mask is None) or (mask is not None and kept is not None and torch.equal(kept, mask))
    if mask is not None:
        # Without the mask the values alone say what is kept: groups with fewer are filled up with zeros.
        again, filled = unpack_weight(layout, pack_weight(weight, layout))
        assert torch.equal(again, weight) and filled is not None
        assert nm_violations(filled, layout.kept, layout.group) == 0
        assert int(filled.sum()) == layout.values and bool(filled[weight != 0].all())


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 8), st.lists(st.integers(0, 255), max_size=40))
def test_fields_are_the_bits_of_one_long_number(bits: int, values: list[int]) -> None:
    stream = pack_fields(np.array(values, np.uint8), bits)
    number = sum((value & ((1 << bits) - 1)) << (bits * place) for place, value in enumerate(values))
    assert int.from_bytes(stream.tobytes(), "little") == number
    assert len(stream) == stream_bytes(bits, len(values))
    fields = unpack_fields(stream, bits, len(values))
    assert fields.tolist() == [value & ((1 << bits) - 1) for value in values]
    if bits > 1:
        half = 1 << (bits - 1)
        assert signed(fields, bits).tolist() == [int(field) - 2 * half * (field >= half) for field in fields]


@pytest.mark.parametrize(
    ("bits", "pattern", "per_weight"),
    [
        (8, (2, 4, 1), Fraction(5)),
        (4, (2, 4, 1), Fraction(3)),
        (4, (4, 8, 2), Fraction(5, 2)),
        (4, (4, 8, 1), Fraction(7, 2)),
        (8, (1, 4, 1), Fraction(5, 2)),
        (4, (1, 1, 1), Fraction(4)),
        (32, (2, 4, 1), Fraction(17)),
    ],
)
def test_bits_a_weight(bits: int, pattern: tuple[int, int, int], per_weight: Fraction) -> None:
    layout = Layout((64, 128), bits, *pattern)
    weight, mask = sparse(layout.shape, layout, 1.0, 0)
    stored = sum(part.nbytes for part in pack_weight(weight, layout, mask).values())
    assert Fraction(8 * stored, weight.numel()) == per_weight


def test_a_group_by_hand() -> None:
    codes = torch.tensor([[0, -3, 0, 5, 0, 0, 0, 7]], dtype=torch.int8)
    parts = pack_weight(codes, Layout((1, 8), 8, 2, 4))
    assert parts[VALUES].view(torch.int8).tolist() == [-3, 5, 0, 7]  # the second group is filled up with its first zero
    assert parts[INDICES].tolist() == [1 | 3 << 2 | 0 << 4 | 3 << 6]
    halves = torch.tensor([[0, 0, -3, 5, 0, 0, 0, 7]], dtype=torch.int8)
    pairs = pack_weight(halves, Layout((1, 8), 4, 4, 8, 2))
    assert pairs[VALUES].tolist() == [0xD | 5 << 4, 0 | 7 << 4]  # -3 is 0b1101, the first of two lies in the low half
    assert pairs[INDICES].tolist() == [1 | 3 << 2]


def test_what_does_not_fit_is_refused() -> None:
    layout = Layout((1, 4), 8, 2, 4)
    codes = torch.tensor([[1, 2, 3, 0]], dtype=torch.int8)
    with pytest.raises(ValueError, match="1 groups keep more than 2 of 4"):
        pack_weight(codes, layout)
    with pytest.raises(ValueError, match="the mask removed are not zero"):
        pack_weight(codes, layout, torch.tensor([[True, True, False, False]]))
    parts = pack_weight(codes * torch.tensor([1, 1, 0, 0], dtype=torch.int8), layout)
    for places in (0 | 0 << 2, 1 | 0 << 2):
        with pytest.raises(ValueError, match="not in rising order"):
            unpack_weight(layout, parts | {INDICES: torch.tensor([places], dtype=torch.uint8)})
    with pytest.raises(ValueError, match="below the smallest, -7"):
        unpack_weight(Layout((1, 2), 4), {VALUES: torch.tensor([0x18], dtype=torch.uint8)})
    five = pack_weight(torch.tensor([[1, 0, 0, 0, 0]], dtype=torch.int8), Layout((1, 5), 8, 1, 5))
    with pytest.raises(ValueError, match="not in rising order"):  # three bits say 7 of a group of 5
        unpack_weight(Layout((1, 5), 8, 1, 5), five | {INDICES: torch.tensor([7], dtype=torch.uint8)})


def test_masks_in_pairs() -> None:
    mask = nm_mask(torch.rand(4, 16), 2, 4)
    assert in_pairs(mask.repeat_interleave(2, 1)) and not in_pairs(torch.tensor([[True, False, False, True]]))
    assert not in_pairs(torch.ones(2, 3, dtype=torch.bool))
    assert in_pairs(torch.ones(2, 4, 3, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        {"bits": 8},
        {"surprise": 1},
        {"shape": 3},
        {"shape": [4, 8.0]},
        {"shape": [4, True]},
        {"shape": [4, -8]},
        {"shape": []},
        {"shape": [1] * 6},
        {"bits": 9},
        {"bits": 1},
        {"bits": "8"},
        {"pattern": "4:2"},
        {"pattern": "0:4"},
        {"pattern": "1:1"},
        {"pattern": "2:99999"},
        {"pattern": "2:1000"},
        {"pattern": "2:3"},
        {"pattern": "two of four"},
        {"pattern": None},
        {"layout": "dense"},
        {"layout": "triples"},
        {"layout": "pairs", "pattern": "1:4"},
        {"group_size": 3},
        {"group_size": 8},
        {"group_size": -4},
        {"bits": 32, "group_size": 4},
    ],
)
def test_no_such_layout(entry: Any) -> None:
    good = Layout((4, 8), 8, 2, 4).as_json()
    with pytest.raises(ValueError, match=r"allowed|must be|divide|dense"):
        Layout.from_json({**good, **entry} if isinstance(entry, dict) and entry and entry != {"bits": 8} else entry)


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            key: st.one_of(st.none(), st.integers(), st.text(max_size=6), st.lists(st.integers(-2, 2**70), max_size=3))
            for key in ("shape", "bits", "layout", "pattern", "group_size")
        }
    )
)
def test_any_layout_is_read_or_refused(entry: dict[str, Any]) -> None:
    try:
        layout = Layout.from_json(entry)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert layout.as_json() == entry


def test_patterns_say_their_numbers() -> None:
    assert numbers("2:4") == (2, 4) and numbers("4:8 pairs") == (4, 8)
    with pytest.raises(ValueError, match="N:M"):
        numbers("2x4")
