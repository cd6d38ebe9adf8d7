"""The law of median: the NumPy definition's bits on every ISA and thread count, in every order of rows."""

from __future__ import annotations

import numpy as np
import order_laws as laws
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import make_rows, same_bits

import fedcore as fc


@pytest.mark.parametrize("n", laws.FEW)
def test_same_bits_for_every_number_of_rows(compiled, dtype, n):
    for f in (None,):
        laws.check_same_bits("median", make_rows(n, 75, dtype), f, compiled)
        laws.check_same_bits("median", laws.hard_rows(n, 75, dtype, n), f, compiled, ("float64",))


@pytest.mark.parametrize("n", [*laws.MANY, 1501, 4096])
def test_same_bits_for_many_rows(compiled, dtype, n):
    laws.check_same_bits("median", make_rows(n, 40, dtype), None, compiled, ("float32",))
    laws.check_same_bits("median", laws.hard_rows(n, 40, dtype, n), None, compiled, ("float64",))


@pytest.mark.parametrize("d", laws.WIDTHS)
def test_same_bits_at_every_boundary_of_columns(compiled, dtype, d):
    for threads in (1, 2, 5):
        laws.check_same_bits("median", make_rows(6, d, dtype), None, compiled, ("float32",), threads)


@pytest.mark.parametrize("n", [2, 9, 40, 70])
def test_the_order_of_rows_changes_no_bit(compiled, dtype, n):
    laws.check_permutation("median", None, n, dtype, compiled)


def test_segments_and_alignment_change_no_bit(compiled, dtype):
    for n in (7, 70):
        laws.check_segments_and_alignment("median", None, n, dtype, compiled)


def test_outputs_of_any_alignment_and_size(compiled):
    laws.check_output("median", None, compiled)


def test_a_zero_is_positive(compiled, dtype):
    for n in (1, 2, 5, 40):
        laws.check_zeros_are_positive("median", None, n, dtype, compiled)


def test_subnormals_survive(compiled, dtype):
    for n in (1, 6, 37):
        laws.check_subnormals("median", None, n, dtype, compiled)


def test_flush_mode_of_the_caller_changes_nothing(compiled):
    laws.check_flush_mode("median", None, compiled)


@pytest.mark.parametrize("n", [1, 5, 40, 130, 1600])
def test_non_finite_input_is_named(compiled, dtype, n):
    laws.check_non_finite_is_named("median", None, n, dtype, compiled)


@pytest.mark.parametrize("n", [10, 37, 66])
def test_non_finite_input_is_named_in_every_row(compiled, dtype, n):
    laws.check_non_finite_at_every_row("median", None, n, dtype, compiled)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 70))
def test_ties_zeros_and_duplicates(data, n):
    element = st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38, -3e38, 2.0, 0.1]), st.floats(-1e3, 1e3, width=32)
    )
    values = data.draw(st.lists(st.lists(element, min_size=n, max_size=n), min_size=1, max_size=4))
    f = None
    columns = np.resize(np.array(values, np.float32), (35, n))
    for isa in _isas():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FEDCORE_ISA", isa)
            laws.check_same_bits("median", list(np.ascontiguousarray(columns.T)), f, {"backend": "c"}, ("float64",))


@pytest.mark.parametrize("n", [301, 1000])
def test_ties_among_many_rows(compiled, n):
    few = np.array([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 0.1, 3e38], np.float32)
    rows = list(np.random.default_rng(0).choice(few, (n, 35), p=[0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05]))
    rows[7] = np.where(np.arange(35) < 20, rows[7], np.float32(2.0))
    laws.check_same_bits("median", rows, None, compiled, ("float64",))


def test_columns_whose_sampled_rows_mislead(compiled):
    """So many columns that in some the median lies beyond three standard deviations of what a sample of rows says."""
    rows = np.random.default_rng(1).standard_normal((301, 20_000), dtype=np.float32)
    assert np.array_equal(fc.ops.median(rows, **compiled), np.median(rows, axis=0))


def _isas() -> list[str]:
    from fedcore.native import isa_available

    return isa_available()


def test_torch_in_torch_out():
    laws.check_torch("median", None)


def test_bad_arguments_are_named():
    laws.check_bad_arguments("median", None)


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
