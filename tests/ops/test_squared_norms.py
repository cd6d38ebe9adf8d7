"""squared_norms: the lane order of the definition on every ISA, hence the same bits everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from inputs import BLOCKS, LANES, from_bits, make_rows, same_bits

import fedcore as fc
from fedcore.dtypes import to_float64
from fedcore.errors import NonFiniteError, ShapeError
from fedcore.rowtable import RowTable


@pytest.mark.parametrize("d", LANES + BLOCKS + (4096 * 64 + 5,))
def test_same_bits_at_every_boundary(compiled, dtype, d):
    n = 5 if d < 10000 else 2
    rows, center = make_rows(n, d, dtype), make_rows(1, d, "float32", seed=9)[0]
    for middle in (None, center):
        expected = fc.ops.squared_norms(rows, middle, backend="reference")
        for threads in (1, 3):
            assert same_bits(fc.ops.squared_norms(rows, middle, threads=threads, **compiled), expected)


def test_reference_agrees_with_numpy(dtype):
    rows, center = make_rows(4, 9000, dtype), make_rows(1, 9000, dtype, seed=3)[0]
    exact = [np.sum((to_float64(r) - to_float64(center)) ** 2) for r in rows]
    np.testing.assert_allclose(fc.ops.squared_norms(rows, center, backend="reference"), exact, rtol=1e-13)


def test_segments_do_not_change_the_bits(compiled):
    """A row cut into tensors has the norm of the row in one piece: blocks are counted by absolute column."""
    row = make_rows(1, 20000, "float32")[0]
    cuts = np.array([0, 3, 4095, 4097, 12000, 19999, 20000])
    lengths = np.diff(cuts)
    table = RowTable([row], (cuts[:-1] * 4)[:, None], lengths, "float32")
    assert same_bits(fc.ops.squared_norms(table, **compiled), fc.ops.squared_norms([row], **compiled))


def test_huge_and_tiny_rows(compiled):
    rows = [np.full(5000, v, np.float32) for v in (3e38, 1e-45, 0.0)]
    got = fc.ops.squared_norms(rows, **compiled)
    np.testing.assert_allclose(got, [5000 * np.float64(np.float32(v)) ** 2 for v in (3e38, 1e-45, 0.0)], rtol=1e-14)


def test_non_finite_input_is_named(compiled):
    rows = make_rows(3, 5000, "float32")
    rows[1][4500] = np.nan
    with pytest.raises(NonFiniteError, match="row 1 holds nan at column 4500"):
        fc.ops.squared_norms(rows, **compiled)
    with pytest.raises(NonFiniteError, match="center: row 0 holds nan at column 4500"):
        fc.ops.squared_norms([rows[0]], rows[1], **compiled)
    half = from_bits([0x3C00] * 40 + [0x7C00], "float16")
    with pytest.raises(NonFiniteError, match="row 0 holds inf at column 40"):
        fc.ops.squared_norms([half], **compiled)


def test_center_of_another_length():
    with pytest.raises(ShapeError, match=r"center: got shape \(9,\), expected one row of 10"):
        fc.ops.squared_norms(make_rows(2, 10, "float32"), np.zeros(9, np.float32))
