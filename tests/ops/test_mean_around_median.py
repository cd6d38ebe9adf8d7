"""The law of mean_around_median: the NumPy definition's bits on every ISA and thread count, in every order of rows."""

from __future__ import annotations

import numpy as np
import order_laws as laws
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import make_rows

import fedcore as fc


@pytest.mark.parametrize("n", laws.FEW)
def test_same_bits_for_every_number_of_rows(compiled, dtype, n):
    for f in sorted({0, n // 10, n // 3, n // 2, n - 1}):
        laws.check_same_bits("mean_around_median", make_rows(n, 75, dtype), f, compiled)
        laws.check_same_bits("mean_around_median", laws.hard_rows(n, 75, dtype, n), f, compiled, ("float64",))


@pytest.mark.parametrize("n", [*laws.MANY, pytest.param(4096, id="4096")])
def test_same_bits_for_many_rows(compiled, dtype, n):
    laws.check_same_bits("mean_around_median", make_rows(n, 40, dtype), n // 3, compiled, ("float32",))
    laws.check_same_bits("mean_around_median", laws.hard_rows(n, 40, dtype, n), n // 3, compiled, ("float64",))


@pytest.mark.parametrize("d", laws.WIDTHS)
def test_same_bits_at_every_boundary_of_columns(compiled, dtype, d):
    for threads in (1, 2, 5):
        laws.check_same_bits("mean_around_median", make_rows(6, d, dtype), 2, compiled, ("float32",), threads)


@pytest.mark.parametrize("n", [2, 9, 40, 70])
def test_the_order_of_rows_changes_no_bit(compiled, dtype, n):
    laws.check_permutation("mean_around_median", n // 3, n, dtype, compiled)


def test_segments_and_alignment_change_no_bit(compiled, dtype):
    for n in (7, 70):
        laws.check_segments_and_alignment("mean_around_median", n // 3, n, dtype, compiled)


def test_outputs_of_any_alignment_and_size(compiled):
    laws.check_output("mean_around_median", 1, compiled)


def test_a_zero_is_positive(compiled, dtype):
    for n in (1, 2, 5, 40):
        laws.check_zeros_are_positive("mean_around_median", n // 3, n, dtype, compiled)


def test_subnormals_survive(compiled, dtype):
    for n in (1, 6, 37):
        laws.check_subnormals("mean_around_median", n // 3, n, dtype, compiled)


def test_flush_mode_of_the_caller_changes_nothing(compiled):
    laws.check_flush_mode("mean_around_median", 2, compiled)


@pytest.mark.parametrize("n", [1, 5, 40, 130])
def test_non_finite_input_is_named(compiled, dtype, n):
    laws.check_non_finite_is_named("mean_around_median", n // 3, n, dtype, compiled)


@pytest.mark.parametrize("n", [10, 37, 66])
def test_non_finite_input_is_named_in_every_row(compiled, dtype, n):
    laws.check_non_finite_at_every_row("mean_around_median", n // 3, n, dtype, compiled)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 70))
def test_ties_zeros_and_duplicates(data, n):
    element = st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38, -3e38, 2.0, 0.1]), st.floats(-1e3, 1e3, width=32)
    )
    values = data.draw(st.lists(st.lists(element, min_size=n, max_size=n), min_size=1, max_size=4))
    f = data.draw(st.integers(0, n - 1))
    columns = np.resize(np.array(values, np.float32), (35, n))
    for isa in _isas():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FEDCORE_ISA", isa)
            laws.check_same_bits(
                "mean_around_median", list(np.ascontiguousarray(columns.T)), f, {"backend": "c"}, ("float64",)
            )


def _isas() -> list[str]:
    from fedcore.native import isa_available

    return isa_available()


def test_torch_in_torch_out():
    laws.check_torch("mean_around_median", 1)


def test_bad_arguments_are_named():
    laws.check_bad_arguments("mean_around_median", 1)


def oracle(rows: list[np.ndarray], f: int) -> np.ndarray:
    """Column by column, the closest n − f by a stable sort of distances over ascending values."""
    columns = np.sort(np.stack(rows).astype(np.float64), axis=0)
    near = np.argsort(np.abs(columns - np.median(columns, axis=0)), axis=0, kind="stable")[: len(rows) - f]
    return np.take_along_axis(columns, near, axis=0).mean(0)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 37, 100])
def test_agrees_with_a_sort_by_distance(compiled, n):
    rows = make_rows(n, 200, "float32", spread=0.5)
    for f in {0, n // 4, n // 2, n - 1}:
        got = fc.ops.mean_around_median(rows, f, out_dtype="float64", **compiled)
        np.testing.assert_allclose(got, oracle(rows, f), rtol=1e-12)


def test_ties_go_to_the_smaller_value(compiled):
    rows = [np.full(40, v, np.float32) for v in (1.0, 2.0, 3.0)]
    assert (fc.ops.mean_around_median(rows, 1, **compiled) == 1.5).all()


def test_an_even_median_is_not_rounded_before_distances(compiled):
    """The fp64 median of 1 and 1 + 2⁻²³ lies between them; rounded to fp32 it would be 1 and choose otherwise."""
    up = np.float32(1 + 2**-23)
    rows = [np.full(40, v, np.float32) for v in (up - 3 * np.float32(2**-23), 1.0, up, up + np.float32(2**-23))]
    exact = [np.float64(r[0]) for r in rows]
    middle = (exact[1] + exact[2]) / 2
    kept = sorted(exact, key=lambda v: (abs(v - middle), v))[:3]
    assert (fc.ops.mean_around_median(rows, 1, out_dtype="float64", **compiled) == sum(sorted(kept)) / 3).all()


@pytest.mark.parametrize(("n", "f", "largest"), [(5, 5, 4), (1, 1, 0), (5, -1, 4), (5, 0.5, 4), (5, True, 4)])
def test_f_out_of_range_says_the_largest(n, f, largest):
    message = rf"mean_around_median: got f = {f}, .* to {largest}, .* for n = {n}"
    with pytest.raises(fc.errors.RuleError, match=message):
        fc.ops.mean_around_median(make_rows(n, 5, "float32"), f)
