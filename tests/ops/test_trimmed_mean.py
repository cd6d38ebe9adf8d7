"""The law of trimmed_mean: the NumPy definition's bits on every ISA and thread count, in every order of rows."""

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
    for f in sorted({0, n // 10, (n - 1) // 3, (n - 1) // 2}):
        laws.check_same_bits("trimmed_mean", make_rows(n, 75, dtype), f, compiled)
        laws.check_same_bits("trimmed_mean", laws.hard_rows(n, 75, dtype, n), f, compiled, ("float64",))


@pytest.mark.parametrize("n", [*laws.MANY, pytest.param(4096, id="4096")])
def test_same_bits_for_many_rows(compiled, dtype, n):
    laws.check_same_bits("trimmed_mean", make_rows(n, 40, dtype), (n - 1) // 3, compiled, ("float32",))
    laws.check_same_bits("trimmed_mean", laws.hard_rows(n, 40, dtype, n), (n - 1) // 3, compiled, ("float64",))


@pytest.mark.parametrize("d", laws.WIDTHS)
def test_same_bits_at_every_boundary_of_columns(compiled, dtype, d):
    for threads in (1, 2, 5):
        laws.check_same_bits("trimmed_mean", make_rows(6, d, dtype), 2, compiled, ("float32",), threads)


@pytest.mark.parametrize("n", [2, 9, 40, 70])
def test_the_order_of_rows_changes_no_bit(compiled, dtype, n):
    laws.check_permutation("trimmed_mean", (n - 1) // 3, n, dtype, compiled)


def test_segments_and_alignment_change_no_bit(compiled, dtype):
    for n in (7, 70):
        laws.check_segments_and_alignment("trimmed_mean", (n - 1) // 3, n, dtype, compiled)


def test_outputs_of_any_alignment_and_size(compiled):
    laws.check_output("trimmed_mean", 1, compiled)


def test_a_zero_is_positive(compiled, dtype):
    for n in (1, 2, 5, 40):
        laws.check_zeros_are_positive("trimmed_mean", (n - 1) // 3, n, dtype, compiled)


def test_subnormals_survive(compiled, dtype):
    for n in (1, 6, 37):
        laws.check_subnormals("trimmed_mean", (n - 1) // 3, n, dtype, compiled)


def test_flush_mode_of_the_caller_changes_nothing(compiled):
    laws.check_flush_mode("trimmed_mean", 2, compiled)


@pytest.mark.parametrize("n", [1, 5, 40, 130])
def test_non_finite_input_is_named(compiled, dtype, n):
    laws.check_non_finite_is_named("trimmed_mean", (n - 1) // 3, n, dtype, compiled)


@pytest.mark.parametrize("n", [10, 37, 66])
def test_non_finite_input_is_named_in_every_row(compiled, dtype, n):
    laws.check_non_finite_at_every_row("trimmed_mean", (n - 1) // 3, n, dtype, compiled)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 70))
def test_ties_zeros_and_duplicates(data, n):
    element = st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38, -3e38, 2.0, 0.1]), st.floats(-1e3, 1e3, width=32)
    )
    values = data.draw(st.lists(st.lists(element, min_size=n, max_size=n), min_size=1, max_size=4))
    f = data.draw(st.integers(0, (n - 1) // 2))
    columns = np.resize(np.array(values, np.float32), (35, n))
    for isa in _isas():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FEDCORE_ISA", isa)
            laws.check_same_bits(
                "trimmed_mean", list(np.ascontiguousarray(columns.T)), f, {"backend": "c"}, ("float64",)
            )


def _isas() -> list[str]:
    from fedcore.native import isa_available

    return isa_available()


def test_torch_in_torch_out():
    laws.check_torch("trimmed_mean", 1)


def test_bad_arguments_are_named():
    laws.check_bad_arguments("trimmed_mean", 1)


@pytest.mark.parametrize("n", [3, 10, 37, 100])
def test_agrees_with_numpy(compiled, n):
    rows, f = make_rows(n, 200, "float32", spread=0.5), n // 4
    expected = np.sort(np.stack(rows).astype(np.float64), axis=0)[f : n - f].mean(0)
    np.testing.assert_allclose(fc.ops.trimmed_mean(rows, f, out_dtype="float64", **compiled), expected, rtol=1e-12)


def test_what_is_dropped_enters_no_sum(compiled):
    """An attacker's 1e38 would swallow the honest values if it were added and taken away again."""
    rows = [np.full(40, v, np.float32) for v in (1e38, 0.125, 0.25, 0.375, -1e38)]
    assert (fc.ops.trimmed_mean(rows, 1, **compiled) == 0.25).all()


def test_without_trimming_it_is_the_mean_in_ascending_order(compiled):
    rows = [np.full(40, v, np.float32) for v in (1.0, 1e20, -1e20)]
    assert (fc.ops.trimmed_mean(rows, 0, out_dtype="float64", **compiled) == (-1e20 + 1.0 + np.float32(1e20)) / 3).all()


@pytest.mark.parametrize(
    ("n", "f", "largest"), [(5, 3, 2), (4, 2, 1), (1, 1, 0), (5, -1, 2), (5, 1.5, 2), (5, True, 2)]
)
def test_f_out_of_range_says_the_largest(n, f, largest):
    with pytest.raises(fc.errors.RuleError, match=rf"trimmed_mean: got f={f}, .* to {largest}, .* for n = {n}"):
        fc.ops.trimmed_mean(make_rows(n, 5, "float32"), f)
