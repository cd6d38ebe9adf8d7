"""Minimum-diameter averaging finds the set that a search through all sets finds."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.errors import RuleError
from fedcore.rules import MinimumDiameterAveraging, NearestNeighborMixing
from fedcore.rules.minimum_diameter import _searches
from fedcore.rules.rows import RowExecutor
from fedcore.rules.vertex_cover import Meter, TooLong, graph_of, members, most_branchings, vertex_cover
from tests.cohorts import WrongWithinBound, check_reasons, cohorts, decided
from tests.oracles import selecting


@settings(deadline=None, max_examples=80)
@given(cohorts(most=10), st.data())
def test_finds_the_oracles_set_with_ties_and_duplicates(rows, data):
    n = len(rows)
    f = data.draw(st.integers(0, (n - 1) // 2))
    expected = selecting.least_diameter_rows(rows, f)
    for kind in (RowExecutor, WrongWithinBound):
        decision = decided(MinimumDiameterAveraging(f), rows, kind=kind)
        assert decision.selected == expected == np.flatnonzero(decision.values).tolist()
        check_reasons(decision, n)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(9, 14), st.integers(1, 60))
def test_finds_the_oracles_set_on_larger_cohorts(seed, n, d):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)).astype(np.float32)
    rows[: n // 4] += rng.choice([0, 1, 50, 1e6])
    f = int(rng.integers(0, (n + 1) // 2))
    assert decided(MinimumDiameterAveraging(f), rows).selected == selecting.least_diameter_rows(rows, f)


class RedoneRoughly(RowExecutor):
    """A sharp Gram, and redone distances that are off by less than they say: what factors can give."""

    def gram(self, origin=None):
        gram = super().gram(origin)
        return gram.__class__(gram.matrix, gram.error * 1e-3, gram.offset, gram.rounding)

    def exact(self, pairs, mix):
        value, _ = super().exact(pairs, mix)
        return value * (1 + 1e-3), value * 2e-3


def test_redone_distances_may_lie_outside_of_what_the_gram_leaves():
    rows = np.random.default_rng(3).standard_normal((9, 50)).astype(np.float32)
    for f in (1, 3):
        found = decided(MinimumDiameterAveraging(f), rows, kind=RedoneRoughly)
        assert found.selected == selecting.least_diameter_rows(rows, f)


def test_result_is_the_plain_mean_of_the_set_and_its_diameter_is_reported():
    rows = np.random.default_rng(0).standard_normal((10, 400)).astype(np.float32)
    rows[2] += 50
    kept = selecting.least_diameter_rows(rows, 3)
    assert 2 not in kept
    np.testing.assert_allclose(
        MinimumDiameterAveraging(3)(rows), rows[kept].astype(float).mean(0), rtol=1e-6, atol=1e-7
    )
    x = rows[kept].astype(np.float64)
    diameter = max(np.linalg.norm(a - b) for a, b in combinations(x, 2))
    assert decided(MinimumDiameterAveraging(3), rows).details["diameter"] == pytest.approx(diameter, rel=1e-12)


def check_cover(edges: np.ndarray, budget: int) -> None:
    n, meter = len(edges), Meter(10**9)
    found = vertex_cover(graph_of(edges), (1 << n) - 1, budget, meter)
    sets = (set(kept) for size in range(budget + 1) for kept in combinations(range(n), size))
    pairs = np.argwhere(np.triu(edges)).tolist()
    exists = any(all(a in kept or b in kept for a, b in pairs) for kept in sets)
    assert (found is not None) == exists
    if found is not None:
        kept = set(members(found))
        assert len(kept) <= budget
        assert all(a in kept or b in kept for a, b in pairs)
    assert meter.branchings <= most_branchings(budget)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.floats(0.05, 0.95))
def test_a_cover_is_found_where_there_is_one(seed, n, density):
    rng = np.random.default_rng(seed)
    edges = np.triu(rng.random((n, n)) < density, 1)
    for budget in range(n):
        check_cover(edges | edges.T, budget)


def test_a_cover_may_leave_out_the_vertex_of_most_neighbors():
    """Two sides with edges between them: the smaller covers, although the larger has the vertex of most neighbours."""
    left_out = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        edges = np.zeros((11, 11), bool)
        edges[:5, 5:] = rng.random((5, 6)) < 0.55
        edges |= edges.T
        order = rng.permutation(11)
        edges = edges[np.ix_(order, order)]
        check_cover(edges, 4)
        check_cover(edges, 5)
        meter = Meter(10**6)
        cover = vertex_cover(graph_of(edges), (1 << 11) - 1, 5, meter)
        degrees = edges.sum(0)
        left_out += meter.branchings > 0 and cover is not None and not cover >> int(degrees.argmax()) & 1
    assert left_out > 0, "the examples are too easy to need that"


@pytest.mark.parametrize("length", [3, 4, 5, 6, 7])
def test_covers_of_cycles(length):
    edges = np.roll(np.eye(length, dtype=bool), 1, axis=1)
    for budget in range(length):
        check_cover(edges | edges.T, budget)


def test_large_cohorts_with_far_attackers_and_without_are_done_at_once():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((150, 30)).astype(np.float32)
    for far in (0.0, 50.0):
        rows[:60] += far
        decision = decided(MinimumDiameterAveraging(60), rows)
        assert decision.details["branchings"] < 10_000
    assert decision.selected == list(range(60, 150))


def test_up_to_f_18_the_search_cannot_be_too_long():
    assert _searches(10_000, 18) * most_branchings(18) <= MinimumDiameterAveraging(18).most_branchings


def hard_rows() -> np.ndarray:
    """60 rows that are all but equally far from each other, at distances of a random 4-regular graph and its rest."""
    rng = np.random.default_rng(0)
    squares = np.full((60, 60), 1.0)
    for _ in range(2):
        order = rng.permutation(60)
        squares[order, np.roll(order, 1)] = squares[np.roll(order, 1), order] = 1.2
    np.fill_diagonal(squares, 0)
    center = np.eye(60) - 1 / 60
    values, vectors = np.linalg.eigh(-center @ squares @ center / 2)
    return (vectors * np.sqrt(np.maximum(values, 0))).astype(np.float32)


def test_a_search_that_is_too_long_is_refused_with_what_it_could_take():
    text = r"f=29 with n=60: not done after 3 branchings, could take .*E\+.* sets of rows"
    with pytest.raises(RuleError, match=text):
        decided(MinimumDiameterAveraging(29, most_branchings=3), hard_rows())
    assert decided(MinimumDiameterAveraging(29), hard_rows()).details["branchings"] > 3
    meter = Meter(1)
    meter.count()
    with pytest.raises(TooLong):
        meter.count()


def test_after_mixing_with_many_equal_rows():
    rows = np.random.default_rng(0).standard_normal((11, 60)).astype(np.float32)
    rows[:3] += 50
    decision = decided(NearestNeighborMixing(3).then(MinimumDiameterAveraging(3)), rows)
    assert decision.details["mixed_rows"]["diameter"] == 0
    assert decision.details["mixed_rows"]["redone_pairs"] == 0
    assert np.flatnonzero(decision.values).tolist() == list(range(3, 11))


@pytest.mark.parametrize(("n", "f", "largest"), [(4, 2, 1), (5, 3, 2), (1, 1, 0)])
def test_f_too_large_says_the_largest(n, f, largest):
    with pytest.raises(RuleError, match=f"largest f for n={n} is {largest}"):
        MinimumDiameterAveraging(f)(np.zeros((n, 4), np.float32))
    MinimumDiameterAveraging(largest)(np.zeros((n, 4), np.float32))
