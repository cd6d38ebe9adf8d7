"""The weighted mean, and what weights are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.errors import DTypeError, NonFiniteError, ShapeError, WeightError
from fedcore.rowtable import RowTable
from fedcore.rules import Mean
from tests.oracles import rules as oracle


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(0, 50), st.integers(0, 2**32 - 1))
def test_equals_the_oracle_rounded_once(n, d, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)).astype(np.float32)
    counts = rng.integers(1, 2**24, n)
    np.testing.assert_allclose(Mean()(rows, counts), oracle.weighted_mean(rows, counts), rtol=2e-7, atol=1e-12)


def test_equal_counts_give_the_plain_mean_in_every_bit():
    rows = np.random.default_rng(0).standard_normal((9, 777)).astype(np.float32)
    assert Mean()(rows, np.full(9, 3)).tobytes() == Mean()(rows).tobytes()
    one = rows[:1]
    assert Mean()(one, [17]).tobytes() == one.tobytes()


def test_a_table_of_rows_and_a_list_give_the_same():
    rows = np.random.default_rng(0).standard_normal((4, 100)).astype(np.float32)
    assert Mean()(RowTable.from_arrays(list(rows))).tobytes() == Mean()(list(rows)).tobytes() == Mean()(rows).tobytes()


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (0, "got weight 0"),
        (-3, "got weight -3"),
        (np.inf, "got weight inf"),
        (np.nan, "got weight nan"),
        (2**24 + 1, r"a count above 2\*\*24"),
        (1e-60, "below the normal fp32 numbers; leave that client out or scale the weights up"),
        (2.0**-127, "below the normal fp32 numbers"),
    ],
)
def test_a_bad_weight_is_named(bad, text):
    with pytest.raises(WeightError, match=f"row 1: .*{text}"):
        Mean()(np.ones((3, 4), np.float32), [1, bad, 1])


def test_the_smallest_normal_weight_counts():
    rows = np.array([[1, 2], [3, 6]], np.float32)
    assert Mean()(rows, [2.0**-126, 2.0**-126]).tolist() == [2, 4]


def test_weights_of_another_length_or_kind_are_refused():
    with pytest.raises(ShapeError, match=r"expected \(3,\)"):
        Mean()(np.ones((3, 4), np.float32), [1, 1])
    with pytest.raises(DTypeError, match="expected real numbers"):
        Mean()(np.ones((3, 4), np.float32), ["a", 1, 1])


def test_a_non_finite_row_is_named():
    rows = np.ones((3, 4), np.float32)
    rows[2, 1] = np.inf
    with pytest.raises(NonFiniteError, match=r"row 2.*column 1"):
        Mean()(rows)


def test_no_rows_are_refused():
    with pytest.raises(ShapeError, match="none"):
        Mean()([])
