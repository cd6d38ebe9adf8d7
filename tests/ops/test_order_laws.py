"""The laws of order statistics: the NumPy definition's bits on every ISA and thread count, in every order of rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import order_laws as laws
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import make_rows


class F(NamedTuple):
    """The f of an op that are tried for a number of rows; None where the op takes none."""

    third: int | None
    half: int | None
    largest: int | None


#: op -> its f for n rows
F_OF = {
    "median": lambda n: F(None, None, None),
    "trimmed_mean": lambda n: F((n - 1) // 3, (n - 1) // 2, (n - 1) // 2),
    "mean_around_median": lambda n: F(n // 3, (n - 1) // 2, n - 1),
}
every_op = pytest.mark.parametrize("op", F_OF)


@every_op
@pytest.mark.parametrize("n", laws.FEW)
def test_same_bits_for_every_number_of_rows(compiled, dtype, op, n):
    found = F_OF[op](n)
    for f in [None] if found.largest is None else sorted({0, n // 10, *found}):
        laws.check_same_bits(op, make_rows(n, 75, dtype), f, compiled)
        laws.check_same_bits(op, laws.hard_rows(n, 75, dtype, n), f, compiled, ("float64",))


@every_op
@pytest.mark.parametrize("n", [*laws.MANY, 4096])
def test_same_bits_for_many_rows(compiled, dtype, op, n):
    laws.check_same_bits(op, make_rows(n, 40, dtype), F_OF[op](n).third, compiled, ("float32",))
    laws.check_same_bits(op, laws.hard_rows(n, 40, dtype, n), F_OF[op](n).third, compiled, ("float64",))


@every_op
@pytest.mark.parametrize("d", laws.WIDTHS)
def test_same_bits_at_every_boundary_of_columns(compiled, dtype, op, d):
    for threads in (1, 2, 5):
        laws.check_same_bits(op, make_rows(6, d, dtype), F_OF[op](6).half, compiled, ("float32",), threads)


@every_op
@pytest.mark.parametrize("n", [2, 9, 40, 70])
def test_the_order_of_rows_changes_no_bit(compiled, dtype, op, n):
    laws.check_permutation(op, F_OF[op](n).third, n, dtype, compiled)


@every_op
def test_segments_and_alignment_change_no_bit(compiled, dtype, op):
    for n in (7, 70):
        laws.check_segments_and_alignment(op, F_OF[op](n).third, n, dtype, compiled)


@every_op
def test_outputs_of_any_alignment_and_size(compiled, op):
    laws.check_output(op, F_OF[op](3).half, compiled)


@every_op
def test_a_zero_is_positive(compiled, dtype, op):
    for n in (1, 2, 5, 40):
        laws.check_zeros_are_positive(op, F_OF[op](n).third, n, dtype, compiled)


@every_op
def test_subnormals_survive(compiled, dtype, op):
    for n in (1, 6, 37):
        laws.check_subnormals(op, F_OF[op](n).third, n, dtype, compiled)


@every_op
def test_flush_mode_of_the_caller_changes_nothing(compiled, op):
    laws.check_flush_mode(op, F_OF[op](5).half, compiled)


@every_op
@pytest.mark.parametrize("n", [1, 5, 40, 130])
def test_non_finite_input_is_named(compiled, dtype, op, n):
    laws.check_non_finite_is_named(op, F_OF[op](n).third, n, dtype, compiled)


@every_op
@pytest.mark.parametrize("n", [10, 37, 66])
def test_non_finite_input_is_named_in_every_row(compiled, dtype, op, n):
    laws.check_non_finite_at_every_row(op, F_OF[op](n).third, n, dtype, compiled)


@every_op
@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 70))
def test_ties_zeros_and_duplicates(op, data, n):
    from fedcore.native import isa_available

    element = st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38, -3e38, 2.0, 0.1]), st.floats(-1e3, 1e3, width=32)
    )
    values = data.draw(st.lists(st.lists(element, min_size=n, max_size=n), min_size=1, max_size=4))
    largest = F_OF[op](n).largest
    f = None if largest is None else data.draw(st.integers(0, largest))
    columns = np.resize(np.array(values, np.float32), (35, n))
    for isa in isa_available():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FEDCORE_ISA", isa)
            laws.check_same_bits(op, list(np.ascontiguousarray(columns.T)), f, {"backend": "c"}, ("float64",))


@every_op
def test_torch_in_torch_out(op):
    laws.check_torch(op, F_OF[op](4).half)


@every_op
def test_bad_arguments_are_named(op):
    laws.check_bad_arguments(op, F_OF[op](3).half)
