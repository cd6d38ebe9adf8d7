"""What trimmed_mean alone must hold to; test_order_laws.py has the laws of every order statistic."""

from __future__ import annotations

import numpy as np
import pytest
from inputs import make_rows

import fedcore as fc


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
