"""Distances from the centred Gram keep their bound, and the pivot lies among the many."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.errors import ShapeError
from fedcore.rules.geometry import Geometry
from fedcore.rules.mixture_bounds import MixtureBounds
from fedcore.rules.pivot import choose_pivot, sampled_columns
from fedcore.rules.rows import RowExecutor
from fedcore.rules.statistics import Gram, Statistics
from tests.oracles import rules as oracle


def geometry_of(rows, reference=None, with_reference=False) -> Geometry:
    references = {"reference": reference} if with_reference else {}
    executor = RowExecutor.from_rows(rows, references=references, backend=None, threads=1)
    return Geometry(Statistics(executor))


def with_attacker(n: int = 8, d: int = 20_000) -> np.ndarray:
    """Honest rows that differ by 1e-4 of their size, and the first row at +50."""
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal(d) + 1e-4 * rng.standard_normal((n, d))).astype(np.float32)
    rows[0] += 50
    return rows


def test_honest_pairs_are_not_disturbed_by_an_attacker():
    rows = with_attacker()
    executor = RowExecutor.from_rows(rows, references={}, backend=None, threads=1)
    gram = executor.gram().matrix
    square = gram.diagonal()
    found = (square[:, None] + square[None, :] - 2 * gram)[1:, 1:]
    true = oracle.squared_distances(rows)[1:, 1:]
    off = ~np.eye(len(true), dtype=bool)
    assert np.abs(found - true)[off].max() < 1e-6 * true[off].min()


def test_intervals_hold_the_true_and_the_redone_distances():
    rows = with_attacker()
    geometry = geometry_of(rows)
    lower, upper = geometry.intervals()
    true = oracle.squared_distances(rows)
    assert (lower <= true).all()
    assert (true <= upper).all()
    assert (upper - lower)[1:, 1:].max() < 1e-3 * true[1:, 1:].max()
    pairs = np.array([[1, 2], [0, 5]])
    value, error = geometry.redo(pairs)
    assert value.tolist() == true[pairs[:, 0], pairs[:, 1]].tolist()
    assert error.tolist() == [0, 0]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 30))
def test_distances_of_mixtures_are_those_of_the_rows_formed(seed, n, d):
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal(d) * 100 + rng.standard_normal((n, d))).astype(np.float32)
    matrix = rng.random((n, n))
    matrix /= matrix.sum(1, keepdims=True)
    geometry = geometry_of(rows).mixed(matrix)
    true = oracle.squared_distances(matrix @ rows.astype(np.float64))
    lower, upper = geometry.intervals()
    room = 1e-9 * (1 + true)  # the oracle's own product rounds at the size of the rows
    assert (lower <= true + room).all()
    assert (true <= upper + room).all()
    pairs = np.argwhere(np.triu(np.ones((n, n)), 1))
    value, _ = geometry.redo(pairs)
    np.testing.assert_allclose(value, true[pairs[:, 0], pairs[:, 1]], rtol=1e-9, atol=1e-9)
    assert (lower[pairs[:, 0], pairs[:, 1]] <= value).all()
    assert (value <= upper[pairs[:, 0], pairs[:, 1]]).all()


def test_rows_that_sum_to_one_but_for_rounding_are_taken():
    for seed in range(3000):
        matrix = np.random.default_rng(seed).random((2, 2))
        matrix /= matrix.sum(1, keepdims=True)
        assert geometry_of(np.ones((2, 1), np.float32)).mixed(matrix).clients == 2
    for k in range(1, 300):
        assert geometry_of(np.ones((k, 1), np.float32)).mixed(np.full((1, k), 1 / k)).clients == 1


def test_mixing_twice_is_mixing_by_the_product():
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((5, 40)).astype(np.float32)
    first, second = (m / m.sum(1, keepdims=True) for m in (rng.random((4, 5)), rng.random((3, 4))))
    pairs = np.array([[0, 1], [0, 2], [1, 2]])
    once = geometry_of(rows).mixed(second @ first).redo(pairs)[0]
    twice = geometry_of(rows).mixed(first).mixed(second).redo(pairs)[0]
    np.testing.assert_allclose(twice, once, rtol=1e-12)


def test_a_mixture_that_does_not_sum_to_one_is_refused():
    with pytest.raises(ShapeError, match=r"^mixing: coefficients of row 1 sum to 1\.5, expected 1; divide by that"):
        geometry_of(np.ones((3, 4), np.float32)).mixed(np.array([[0.5, 0.5, 0], [0.5, 0.5, 0.5]]))
    with pytest.raises(ShapeError, match=r"^mixing: coefficients of row 0 sum to nan, expected 1"):
        geometry_of(np.ones((3, 4), np.float32)).mixed(np.full((2, 3), np.nan))
    with pytest.raises(ShapeError, match=r"expected \(rows, 3\)"):
        geometry_of(np.ones((3, 4), np.float32)).mixed(np.ones((2, 2)))


@pytest.mark.parametrize("attackers", [[0], [0, 1, 2], [7, 8]])
def test_a_minority_cannot_become_the_pivot(attackers):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((9, 100))
    for k, row in enumerate(attackers):
        rows[row] = [1e30, np.nan, 50][k]

    def columns(blocks):
        return np.concatenate([rows[:, start:stop] for start, stop in blocks], axis=1)

    assert choose_pivot(9, 100, columns) not in attackers


def test_the_sample_is_fixed_and_spread_over_all_columns():
    assert sampled_columns(9, 4096) == [(0, 4096)]
    blocks = sampled_columns(9, 1_000_001)
    assert len(blocks) == 16
    assert blocks[0][0] == 0
    assert blocks[-1][1] == 1_000_001
    assert all(stop - start == 256 for start, stop in blocks)


KINDS = ["clip", "buckets", "neighbors", "clip, neighbors", "neighbors, clip"]


def mixtures(kind: str, n: int) -> np.ndarray:
    rng = np.random.default_rng(4)
    if kind == "buckets":
        return np.repeat(np.eye(n // 4), 4, axis=1) / 4
    clip, near = np.eye(n + 1), np.eye(n + 1)
    clip[:n] *= rng.uniform(0, 1, (n, 1))
    clip[:n, n] = 1 - clip[:n].sum(1)
    near[:n, :n] = rng.uniform(0, 1, (n, n)) < 0.5
    near[:n] /= near[:n].sum(1, keepdims=True)
    if kind != "neighbors, clip":  # else they hold rows by different weights
        near[:n, :n] = (near[:n, :n] > 0) * rng.uniform(0, 1, n)
    return {"clip": clip, "clip, neighbors": near @ clip, "neighbors, clip": clip @ near}.get(kind, near)


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_of_mixtures_are_those_of_their_differences(kind):
    """‖v‖₁ Σ |v_k| e_k for v = m_a − m_b, however many rows the mixtures share."""
    mix = mixtures(kind, 40)
    columns = mix.shape[1]
    error = np.random.default_rng(5).uniform(0, 1, columns)
    found = MixtureBounds(Gram(np.zeros((columns, columns)), error, 0.0, 0.0), mix)
    rows = np.arange(len(mix))
    every, slack = found.every(rows)
    for a in rows:
        v = np.abs(mix[a] - mix)
        expected, far = found.pairs(a, rows)
        np.testing.assert_allclose(expected, v.sum(1) * (v @ error), rtol=1e-12)
        np.testing.assert_allclose(every[a], expected, rtol=1e-11)
        np.testing.assert_array_equal(slack[a, rows != a], far[rows != a])


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_of_all_mixtures_at_once_are_no_less_than_the_exact_ones(kind):
    """Rounding included, which must not come off a bound: of mixtures that differ in two rows of 400 most cancels."""
    n = 400
    mix = mixtures(kind, n)
    if "neighbors" in kind:
        mix[1:60] = mix[0]
        for i in range(1, 60):
            gone, new = np.flatnonzero(mix[i])[i], np.flatnonzero(mix[i] == 0)[i]
            mix[i, gone], mix[i, new] = 0.0, mix[:, new].max()
    columns = mix.shape[1]
    error = np.random.default_rng(6).uniform(0, 1, columns)
    every, _ = MixtureBounds(Gram(np.zeros((columns, columns)), error, 0.0, 0.0), mix).every(np.arange(len(mix)))
    weights = [Fraction(x) for x in error.tolist()]
    # differences that are taken one by one cancel before they are added; a product is rounded once
    room = Fraction(columns if kind == "neighbors, clip" else 4, 2**52)
    for a in range(0, 60, 20):
        one = [Fraction(x) for x in mix[a].tolist()]
        for b in range(1, 60, 4):
            v = [abs(x - Fraction(y)) for x, y in zip(one, mix[b].tolist(), strict=True)]
            bound = sum(v) * sum(x * e for x, e in zip(v, weights, strict=True))
            assert a == b or bound * (1 - room) <= Fraction(every[a, b])
