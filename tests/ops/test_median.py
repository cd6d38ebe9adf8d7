"""What median alone must hold to; test_order_laws.py has the laws of every order statistic."""

from __future__ import annotations

import numpy as np
import order_laws as laws
import pytest
from inputs import make_rows, same_bits

import fedcore as fc


def test_same_bits_for_an_odd_number_of_many_rows(compiled, dtype):
    laws.check_same_bits("median", make_rows(2001, 40, dtype), None, compiled, ("float32",))
    laws.check_same_bits("median", laws.hard_rows(2001, 40, dtype, 2001), None, compiled, ("float64",))


def test_non_finite_input_among_many_rows_is_named(compiled, dtype):
    laws.check_non_finite_is_named("median", None, 2001, dtype, compiled)


@pytest.mark.parametrize("n", [401, 1000])
def test_ties_among_many_rows(compiled, n):
    few = np.array([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 0.1, 3e38], np.float32)
    rows = list(np.random.default_rng(0).choice(few, (n, 35), p=[0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05]))
    rows[7] = np.where(np.arange(35) < 20, rows[7], np.float32(2.0))
    laws.check_same_bits("median", rows, None, compiled, ("float64",))


def test_columns_whose_sampled_rows_mislead(compiled):
    """So many columns that in some the median lies beyond three standard deviations of what a sample of rows says."""
    rows = np.random.default_rng(1).standard_normal((401, 20_000), dtype=np.float32)
    assert np.array_equal(fc.ops.median(rows, **compiled), np.median(rows, axis=0))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("n", [1, 2, 5, 8, 37, 100])
def test_agrees_with_numpy(compiled, dtype, n):
    rows = make_rows(n, 200, dtype)
    expected = np.median(np.stack(rows).astype(np.float64), axis=0)
    assert same_bits(fc.ops.median(rows, out_dtype="float64", **compiled), expected)


def test_an_odd_median_has_the_bits_of_an_element(compiled, dtype):
    rows = laws.hard_rows(9, 500, dtype)
    got = fc.ops.median(rows, out_dtype=dtype, **compiled).tobytes()
    columns = [{row[k].tobytes() for row in rows} | {bytes(rows[0].itemsize)} for k in range(500)]
    size = rows[0].itemsize
    assert all(got[k * size : (k + 1) * size] in columns[k] for k in range(500))


def test_the_middle_two_are_added_in_fp64(compiled):
    """Half of 3e38 + 3e38 is 3e38, not Inf."""
    rows = [np.full(40, v, np.float32) for v in (3e38, 3e38, -1.0, 3.2e38)]
    assert (fc.ops.median(rows, **compiled) == np.float32(3e38)).all()


def test_overflow_raises(compiled):
    with pytest.raises(fc.errors.RangeError, match="median: a finite result does not fit float16"):
        fc.ops.median([np.full(40, 70000, np.float32)] * 3, out_dtype="float16", **compiled)


@pytest.mark.parametrize("out_dtype", laws.OUT)
def test_outputs_too_large_for_the_cache_are_the_same(out_dtype):
    """They are written past it, from a place that may be aligned or not; a zero is +0 there, too."""
    tile, times = laws.hard_rows(2, 1001, "float16" if out_dtype.endswith("16") else "float32"), 4200
    tile[0][:3], tile[1][:3] = (-0.0, -1e-45, 0.0), (-0.0, 0.0, -1e-45)
    expected = fc.ops.median(tile, out_dtype=out_dtype, backend="reference")
    rows = [np.tile(row, times) for row in tile]
    size = len(expected) * times * expected.itemsize
    memory = np.zeros(size + 136, np.uint8)
    for skipped in (0, 8, 16):
        start = -memory.ctypes.data % 64 + skipped
        out = memory[start : start + size].view(expected.dtype)
        assert same_bits(fc.ops.median(rows, out=out, threads=2, backend="c"), np.tile(expected, times))
