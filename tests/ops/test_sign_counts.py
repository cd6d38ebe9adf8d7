"""sign_counts: the same votes as the NumPy definition on every ISA and thread count, whatever the dtypes and modes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import LANES, TILES, from_bits, make_rows, same_bits

import fedcore as fc
from fedcore.dtypes import round_from_float64, to_float64
from fedcore.errors import NonFiniteError, ShapeError
from fedcore.rowtable import RowTable


def votes(rows, center=None) -> np.ndarray:
    """The definition in one line."""
    middle = 0 if center is None else to_float64(center)
    return np.sum([np.sign(to_float64(row) - middle) for row in rows], axis=0).astype(np.int32)


@pytest.mark.parametrize("d", LANES + TILES)
def test_votes_at_every_boundary(compiled, dtype, d):
    rows = make_rows(7, d, dtype, spread=0.5)
    for center in (None, *(make_rows(1, d, other, seed=5)[0] for other in ("float32", "float16", "bfloat16"))):
        for threads in (1, 4):
            got = fc.ops.sign_counts(rows, center, threads=threads, **compiled)
            assert same_bits(got, votes(rows, center))
        assert same_bits(fc.ops.sign_counts(rows, center, backend="reference"), votes(rows, center))


@pytest.mark.parametrize("n", [1, 2, 4, 5, 6, 10, 11, 301])
def test_votes_for_every_group_of_rows(compiled, n):
    rows = make_rows(n, 70, "float32")
    assert same_bits(fc.ops.sign_counts(rows, **compiled), votes(rows))


def test_zeros_of_either_sign_do_not_vote_and_subnormals_do(compiled, dtype):
    sign = 1 << (31 if dtype == "float32" else 15)
    row = from_bits([0, sign, 1, sign | 1] * 10, dtype)
    expected = np.array([0, 0, 3, -3] * 10, np.int32)
    torch = pytest.importorskip("torch", reason="the caller's flush mode is set through torch")
    zero = from_bits([sign, 0] * 20, dtype)
    for flush in (False, True):
        assert torch.set_flush_denormal(flush)
        try:
            got = [fc.ops.sign_counts([row] * 3, center, **compiled) for center in (None, zero)]
        finally:
            torch.set_flush_denormal(False)
        assert all(same_bits(found, expected) for found in got), flush


def test_a_centre_of_another_dtype_is_compared_exactly(compiled):
    """bf16 and fp16 elements on either side of an fp32 centre that neither can hold."""
    center = np.full(33, 1 + 2.0**-20, np.float32)
    for dtype in ("bfloat16", "float16"):
        low, high = (round_from_float64(np.full(33, v), dtype) for v in (1.0, 1 + 2.0**-7))
        assert (fc.ops.sign_counts([low, low, high], center, **compiled) == -1).all()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=4), min_size=1)
)
def test_votes_of_any_numbers(values):
    rows = [np.array(row, np.float32) for row in values]
    assert same_bits(fc.ops.sign_counts(rows), votes(rows))
    assert same_bits(fc.ops.sign_counts(rows, rows[0]), votes(rows, rows[0]))


@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7FC00000, 0xFFFFFFFF, 0x7F800001])
def test_non_finite_input_is_named(compiled, bits):
    rows, bad = make_rows(7, 100, "float32"), make_rows(1, 100, "float32")[0]
    for column in (0, 15, 97, 99):
        broken = bad.copy()
        broken[column] = np.uint32(bits).view(np.float32)
        with pytest.raises(NonFiniteError, match=rf"sign_counts: row 5 holds .* at column {column}"):
            fc.ops.sign_counts([*rows[:5], broken, rows[6]], **compiled)
        with pytest.raises(NonFiniteError, match=rf"center: row 0 holds .* at column {column}"):
            fc.ops.sign_counts(rows, broken, **compiled)


def test_unaligned_rows_in_segments(compiled, dtype):
    rows = make_rows(6, 300, dtype)
    item = rows[0].itemsize
    buffers = [b"\xff" * (i % 4) + row.tobytes() for i, row in enumerate(rows)]
    cuts = np.array([0, 7, 150])
    offsets = (cuts * item)[:, None] + np.arange(6) % 4
    table = RowTable(buffers, offsets, np.array([7, 143, 150]), dtype)
    assert same_bits(fc.ops.sign_counts(table, table.take([2]), **compiled), votes(rows, rows[2]))


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch", reason="checks torch inputs")
    rows = torch.randn(5, 100).half()
    got = fc.ops.sign_counts(rows, torch.zeros(100))
    assert got.dtype == torch.int32
    assert torch.equal(got, rows.sign().sum(0).int())


def test_a_centre_of_another_length_is_refused():
    with pytest.raises(ShapeError, match=r"center: got shape \(9,\), expected one row of 10 columns"):
        fc.ops.sign_counts(make_rows(3, 10, "float32"), np.zeros(9, np.float32))
