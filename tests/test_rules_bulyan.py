"""Bulyan chooses what Krum in fp64 chooses again and again, and takes the mean around the median of that."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.errors import RuleError
from fedcore.rules import Bulyan, NearestNeighborMixing, NormClipping, shrinking
from fedcore.rules.distances import Distances
from fedcore.rules.geometry import Geometry
from fedcore.rules.rows import RowExecutor
from fedcore.rules.shrinking import PASSES, ShrinkingSums, choose_one_by_one
from fedcore.rules.statistics import Statistics
from tests.cohorts import WrongWithinBound, check_reasons, cohorts, decided
from tests.oracles import rules as oracle
from tests.oracles import selecting


@settings(deadline=None, max_examples=80)
@given(cohorts(least=7, most=13), st.data())
def test_chooses_as_the_oracle_does_with_ties_and_duplicates(rows, data):
    n = len(rows)
    f = data.draw(st.integers(0, (n - 3) // 4))
    expected = selecting.bulyan_rows(rows, f)
    for kind in (RowExecutor, WrongWithinBound):
        decision = decided(Bulyan(f), rows, kind=kind)
        assert decision.selected == decision.rows == sorted(expected)
        assert (decision.statistic, decision.f) == ("mean_around_median", 2 * f)
        check_reasons(decision, n)
        if f:
            assert np.argsort(decision.per_client["chosen_as"], kind="stable")[2 * f :].tolist() == expected


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(7, 40), st.integers(1, 200))
def test_chooses_as_the_oracle_does_on_larger_cohorts(seed, n, d):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)).astype(np.float32)
    f = (n - 3) // 4
    rows[:f] += rng.choice([0, 0.1, 50, 1e6])
    rows[f // 2 : f] = rows[f // 2]
    assert decided(Bulyan(f), rows).rows == sorted(selecting.bulyan_rows(rows, f))


def test_values_are_the_mean_around_the_median_of_the_chosen():
    for seed in range(6):
        rng = np.random.default_rng(seed)
        rows = rng.standard_normal((15, 300)).astype(np.float32)
        rows[:3, 7] += 1e6
        rows[2] -= 50
        np.testing.assert_allclose(Bulyan(3)(rows), selecting.bulyan(rows, 3), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("n", "f"), [(15, 3), (43, 10), (100, 24)])
def test_values_of_updates_of_few_values(n, f):
    """The second stage leaves out more than half of the chosen, among many that are equal."""
    rng = np.random.default_rng(n)
    rows = (rng.integers(-1, 2, (n, 2000)) * 1e-3).astype(np.float32)
    np.testing.assert_allclose(Bulyan(f)(rows), selecting.bulyan(rows, f), rtol=0, atol=1e-9)


def test_after_a_pre_aggregation_equals_the_rule_on_rows_that_were_formed():
    for seed in range(6):
        rng = np.random.default_rng(seed)
        rows = rng.standard_normal((11, 60)).astype(np.float32) * rng.uniform(0.5, 2, (11, 1)).astype(np.float32)
        clipped = oracle.clipped(rows, np.zeros(60), 7.0).astype(np.float32)
        found = NormClipping(7.0).then(Bulyan(2))(rows)
        np.testing.assert_allclose(found, selecting.bulyan(clipped, 2), rtol=1e-5, atol=1e-6)
        formed = selecting.mixed(rows, 2).astype(np.float32)
        found = NearestNeighborMixing(2).then(Bulyan(2))(rows)
        np.testing.assert_allclose(found, selecting.bulyan(formed, 2), rtol=1e-5, atol=1e-6)


def test_in_one_shot_as_flower_does():
    rows = np.random.default_rng(0).standard_normal((15, 40)).astype(np.float32)
    decision = decided(Bulyan(3, selection="flower"), rows)
    assert decision.rows == oracle.multi_krum_rows(rows, 3, 9)
    check_reasons(decision, 15)
    disagree = 0
    for seed in range(20):
        rows = np.random.default_rng(seed).standard_normal((15, 4)).astype(np.float32)
        decision = decided(Bulyan(3, selection="flower"), rows)
        assert decision.rows == oracle.multi_krum_rows(rows, 3, 9)
        assert (decision.details["theta"], decision.details["beta"]) == (9, 3)
        np.testing.assert_allclose(decision.per_client["scores"], oracle.krum_scores(rows, 3), rtol=1e-5)
        disagree += decided(Bulyan(3), rows).rows != decision.rows
    assert disagree > 0, "the examples are too easy to tell the two apart"


@pytest.mark.parametrize(("n", "f", "largest"), [(10, 2, 1), (11, 3, 2), (6, 1, 0), (3, 1, 0)])
def test_f_too_large_says_the_largest(n, f, largest):
    with pytest.raises(RuleError, match=rf"n ≥ 4f \+ 3; the largest f for n={n} is {largest}"):
        Bulyan(f)(np.zeros((n, 4), np.float32))
    Bulyan(largest).check(n)


def test_bad_parameters_are_refused():
    with pytest.raises(RuleError, match="selection='oneshot'"):
        Bulyan(1, selection="oneshot")
    with pytest.raises(RuleError, match="expected a whole number"):
        Bulyan(1.5)
    with pytest.raises(RuleError, match="even f=0 needs n of at least 3"):
        Bulyan(0).check(2)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(3, 30), st.booleans())
def test_sums_follow_the_rows_that_leave(seed, n, ties):
    """Kept up by what each departure changes, they stay within their doubt of sums made afresh."""
    rng = np.random.default_rng(seed)
    matrix = np.triu(rng.integers(0, 4, (n, n)) if ties else rng.random((n, n)) * 10.0 ** rng.integers(-9, 30), 1)
    matrix = (matrix + matrix.T).astype(float)
    k, left = int(rng.integers(0, n)), list(range(n))
    sums = ShrinkingSums(matrix, k)
    for _ in range(n - 2):
        for i in left:
            expected = np.cumsum([0.0, *np.sort([matrix[i, j] for j in left if j != i])[:k]])[-1]
            assert abs(sums.sums[i] - expected) <= sums.doubt[i]
            if rng.random() < 0.1:
                sums.afresh(np.array([i]))
                assert sums.sums[i] == expected
        row = left.pop(int(rng.integers(len(left))))
        k = min(max(k - int(rng.integers(0, 2)), 0), len(left) - 1)
        sums.leave(row, k)


def test_clear_cases_redo_nothing_and_equal_attackers_cost_one_pair_each():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((23, 2000)).astype(np.float32) * np.linspace(1, 2, 23, dtype=np.float32)[:, None]
    assert decided(Bulyan(5), rows).details["redone_pairs"] == 0
    rows[:5] = rows[5:].mean(0)  # a copy of the honest mean, five times: they tie for the first choice
    decision = decided(Bulyan(5), rows)
    assert decision.rows == sorted(selecting.bulyan_rows(rows, 5))
    assert decision.details["redone_pairs"] <= 4


def test_equal_mixtures_are_in_no_doubt():
    """Mixing makes all honest rows one and the same: the usual case, in which nothing may be redone."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 500)).astype(np.float32)
    rows[:8] += 50
    executor = RowExecutor.from_rows(rows, references={}, backend=None, threads=1)
    statistics = Statistics(executor)
    geometry = Geometry(statistics)
    mixed = geometry.mixed(NearestNeighborMixing(8).mixing(geometry, None).matrix)
    assert len(np.unique(mixed.same)) <= 9
    assert (mixed.same[8:] == 8).all()
    chosen, _, redone = choose_one_by_one(mixed, lambda left: max(1, left - 10), 24)
    assert chosen == list(range(8, 32))
    assert redone == 0


def test_redone_pairs_of_equal_rows_are_formed_once():
    rows = np.repeat(np.random.default_rng(0).standard_normal((2, 10)).astype(np.float32), 4, axis=0)
    executor = RowExecutor.from_rows(rows, references={}, backend=None, threads=1)
    geometry = Geometry(Statistics(executor))
    distances = Distances(geometry)
    distances.find_equal(np.arange(8))
    assert distances.same.tolist() == [0, 0, 0, 0, 4, 4, 4, 4]
    distances.redo(np.ones((8, 8), bool))
    assert geometry.redone <= 7, "of 28 pairs; one would do for all between the two kinds"
    assert (distances.value == oracle.squared_distances(rows)).all()


def near_ties(kind: str, n: int) -> np.ndarray:
    """(n, d) fp32 rows whose order the Gram leaves open again and again."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n, 4000)).astype(np.float32)
    if kind == "Gaussian":
        rows /= np.linalg.norm(rows, axis=1)[:, None]
    elif kind == "groups of equal rows":
        rows = np.repeat(rows[: n // 3] * np.linspace(1, 2, n // 3, dtype=np.float32)[:, None], 3, axis=0)
    elif kind == "one length":
        rows = np.eye(n, 300, dtype=np.float32)
        rows *= (1 + 1e-6 * rng.standard_normal(n)).astype(np.float32)[:, None]
    return rows


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("kind", ["Gaussian", "groups of equal rows", "one length"])
def test_the_data_are_read_again_a_few_times_whatever_n(kind, mixed, monkeypatch):
    passes, exact = [], RowExecutor.exact
    monkeypatch.setattr(RowExecutor, "exact", lambda *given: passes.append(len(given[1])) or exact(*given))
    rows = near_ties(kind, 60)
    geometry = Geometry(Statistics(WrongWithinBound.from_rows(rows, references={}, backend=None, threads=1)))
    if mixed:
        rng = np.random.default_rng(1)
        # halves, so that mixtures are exact and so is the oracle
        matrix = (np.eye(60) + np.eye(60)[rng.permutation(60)]) / 2
        geometry, rows = geometry.mixed(matrix), matrix @ rows.astype(np.float64)
    decision = Bulyan(9).decide(geometry, None)
    assert decision.rows == sorted(selecting.bulyan_rows(rows, 9))
    assert 1 <= len(passes) <= PASSES + 1
    assert sum(passes) == decision.details["redone_pairs"] <= 60 * 59 // 2


def test_after_that_all_pairs_of_the_rows_that_are_left_are_redone(monkeypatch):
    rows = near_ties("one length", 30)
    monkeypatch.setattr(shrinking, "PASSES", 0)
    decision = decided(Bulyan(5), rows, kind=WrongWithinBound)
    assert decision.rows == sorted(selecting.bulyan_rows(rows, 5))
    assert 0 < decision.details["redone_pairs"] <= 30 * 29 // 2
