"""squared_distances: the oracle of certified selection, strictly in column order."""

from __future__ import annotations

import numpy as np
import pytest
from inputs import make_rows, same_bits

import fedcore as fc
from fedcore.dtypes import to_float64
from fedcore.errors import BackendError, DTypeError, NonFiniteError, ShapeError, WeightError


@pytest.mark.parametrize("d", [0, 1, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("pairs", [1, 7, 8, 9, 50])
def test_same_bits_as_the_loop(compiled, dtype, d, pairs):
    rows = make_rows(6, d, dtype)
    index = np.random.default_rng(d).integers(0, 6, (pairs, 2))
    expected = []
    for i, j in index:
        total = 0.0
        for a, b in zip(to_float64(rows[i]).tolist(), to_float64(rows[j]).tolist(), strict=True):
            total += (a - b) * (a - b)
        expected.append(total)
    got = fc.ops.squared_distances(rows, index, threads=2, **compiled)
    assert same_bits(got, np.array(expected))
    assert same_bits(fc.ops.squared_distances(rows, index, backend="reference"), got)


def test_equal_rows_are_at_distance_zero(compiled):
    row = make_rows(1, 3000, "float32")[0]
    assert fc.ops.squared_distances([row, row.copy()], [[0, 1]], **compiled)[0] == 0.0


def test_bad_arguments_are_named(compiled):
    rows = make_rows(3, 10, "float32")
    with pytest.raises(ShapeError, match="row numbers 0 to 3, expected 0 to 2"):
        fc.ops.squared_distances(rows, [[0, 3]], **compiled)
    with pytest.raises(ShapeError, match=r"expected \(m, 2\)"):
        fc.ops.squared_distances(rows, [0, 1], **compiled)
    with pytest.raises(DTypeError, match="pairs: got float64, expected integer row numbers"):
        fc.ops.squared_distances(rows, [[0.5, 1.9]], **compiled)
    rows[2][4] = np.nan
    with pytest.raises(NonFiniteError, match="row 2 holds nan at column 4"):
        fc.ops.squared_distances(rows, [[0, 1], [0, 2]], **compiled)


@pytest.mark.parametrize("d", [0, 1, 511, 512, 513, 5000])
def test_mixtures_have_the_bits_of_the_loop(compiled, dtype, d):
    """Rows in order from 0.0, then columns in order: whatever the tiles, and with what came before."""
    rows, draw = make_rows(9, d, dtype), np.random.default_rng(d)
    mix = draw.normal(size=(7, 9)) * (draw.random((7, 9)) < 0.5)
    index = draw.integers(0, 7, (17, 2))
    wide = [to_float64(row).tolist() for row in rows]
    points = [[0.0 for _ in range(d)] for _ in mix]
    for m, shares in enumerate(mix.tolist()):
        for share, row in zip(shares, wide, strict=True):
            if share:
                points[m] = [before + share * x for before, x in zip(points[m], row, strict=True)]
    expected = []
    for i, j in index:
        total = 1.5
        for a, b in zip(points[i], points[j], strict=True):
            total += (a - b) * (a - b)
        expected.append(total)
    for backend in (compiled, {"backend": "reference"}):
        got = fc.ops.squared_distances(rows, index, mix=mix, total=np.full(17, 1.5), threads=2, **backend)
        assert same_bits(got, np.array(expected))


def test_bad_mixtures_are_named(compiled):
    rows = make_rows(3, 10, "float32")
    with pytest.raises(ShapeError, match=r"mix: got shape \(2, 4\), expected \(mixtures, 3\)"):
        fc.ops.squared_distances(rows, [[0, 1]], mix=np.ones((2, 4)), **compiled)
    with pytest.raises(ShapeError, match="got mixtures 0 to 2, expected 0 to 1"):
        fc.ops.squared_distances(rows, [[0, 2]], mix=np.ones((2, 3)), **compiled)
    with pytest.raises(WeightError, match="mix: got inf for row 1 of mixture 0"):
        fc.ops.squared_distances(rows, [[0, 1]], mix=[[1, np.inf, 0], [1, 0, 0]], **compiled)
    with pytest.raises(BackendError, match="mixes no rows"):
        fc.ops.squared_distances(rows, [[0, 1]], mix=np.eye(3), backend="triton")
    rows[2][4] = np.nan
    fc.ops.squared_distances(rows, [[0, 1]], mix=np.eye(2, 3), **compiled)
    with pytest.raises(NonFiniteError, match="row 2 holds nan at column 4"):
        fc.ops.squared_distances(rows, [[0, 1]], mix=[[1, 0, 0], [0, 0, 1]], **compiled)
