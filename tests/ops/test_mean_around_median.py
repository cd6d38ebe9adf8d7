"""What mean_around_median alone must hold to; test_order_laws.py has the laws of every order statistic."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from inputs import make_rows

import fedcore as fc


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


@pytest.mark.parametrize("n", range(1, 10))
def test_every_multiset_of_few_values_and_every_f(compiled, n):
    """Equal values on one side of the median, of which more than half are left out: each column is another multiset."""
    columns = np.array(list(itertools.combinations_with_replacement(range(5), n)), np.float32)
    rows = list(np.ascontiguousarray(columns[:, np.random.default_rng(n).permutation(n)].T))
    for f in range(n):
        got = fc.ops.mean_around_median(rows, f, out_dtype="float64", **compiled)
        np.testing.assert_array_equal(got, oracle(rows, f))


@pytest.mark.parametrize("n", [15, 33, 70, 140])
def test_updates_of_few_values(compiled, n):
    rng = np.random.default_rng(n)
    rows = [rng.integers(-1, 2, 300).astype(np.float32) for _ in range(n)]
    for f in {n // 2 + 1, 3 * n // 4, n - 2}:
        got = fc.ops.mean_around_median(rows, f, out_dtype="float64", **compiled)
        np.testing.assert_allclose(got, oracle(rows, f), rtol=0, atol=1e-15)


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
    message = rf"mean_around_median: got f={f}, .* to {largest}, .* for n = {n}"
    with pytest.raises(fc.errors.RuleError, match=message):
        fc.ops.mean_around_median(make_rows(n, 5, "float32"), f)
