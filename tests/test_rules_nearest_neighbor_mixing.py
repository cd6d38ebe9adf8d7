"""Nearest-neighbour mixing has the neighbours of fp64 distances, and composes without a look at the data."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.errors import RuleError
from fedcore.rules import Bucketing, Krum, Mean, MinimumDiameterAveraging, MoNNA, MultiKrum, NormClipping
from fedcore.rules import NearestNeighborMixing as NNM
from fedcore.rules.geometry import Geometry
from fedcore.rules.rows import RowExecutor
from fedcore.rules.statistics import Gram, Statistics
from tests.cohorts import WrongWithinBound, cohorts, decided
from tests.oracles import rules as oracle
from tests.oracles import selecting


def mixing(f, rows, kind=RowExecutor) -> np.ndarray:
    executor = kind.from_rows(rows, references={}, backend=None, threads=1)
    return NNM(f).mixing(Geometry(Statistics(executor)), None).matrix


def neighborhoods(f, rows, kind=RowExecutor) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in mixing(f, rows, kind)]


@settings(deadline=None, max_examples=80)
@given(cohorts(), st.data())
def test_neighborhoods_are_the_oracles_with_ties_and_duplicates(rows, data):
    f = data.draw(st.integers(0, (len(rows) - 1) // 2))
    expected = selecting.neighborhoods(rows, f)
    assert neighborhoods(f, rows) == expected
    assert neighborhoods(f, rows, WrongWithinBound) == expected


def test_each_row_of_the_mixing_is_a_mean_of_n_minus_f():
    rows = np.random.default_rng(0).standard_normal((9, 30)).astype(np.float32)
    matrix = mixing(3, rows)
    assert set(matrix.ravel().tolist()) == {0.0, 1 / 6}
    assert (matrix.diagonal() > 0).all()
    np.testing.assert_allclose(matrix @ rows, selecting.mixed(rows, 3), rtol=1e-12, atol=1e-12)


def some_rows(seed: int, n: int = 11) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, 60)) * rng.uniform(0.5, 2, (n, 1))
    rows[rng.integers(n)] += [0, 50, 1e6][seed % 3]
    return rows.astype(np.float32)


@pytest.mark.parametrize(
    "following", [Krum(2), MultiKrum(2), MultiKrum(2, m=3), Krum(2, "byzfl"), MinimumDiameterAveraging(3), Mean()]
)
def test_composition_equals_two_steps_on_rows_that_were_formed(following):
    for seed in range(9):
        rows = some_rows(seed)
        formed = selecting.mixed(rows, 2).astype(np.float32)
        np.testing.assert_allclose(NNM(2).then(following)(rows), following(formed), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("following", [Krum(2), MultiKrum(2), MultiKrum(1, m=2), Mean()])
def test_three_stages_equal_rows_formed_twice(following):
    for seed in range(9):
        rows = some_rows(seed)
        reference = np.full(60, 0.1, np.float32)
        clipped = oracle.clipped(rows, reference, 9.0).astype(np.float32)
        formed = selecting.mixed(clipped, 2).astype(np.float32)
        found = NormClipping(9.0).then(NNM(2)).then(following)(rows, reference=reference)
        np.testing.assert_allclose(found, following(formed), rtol=1e-5, atol=1e-5)


def test_composition_with_a_trusted_row_and_a_reference():
    for seed in range(6):
        rows, server = some_rows(seed), some_rows(seed + 50)[0]
        reference = np.full(60, 0.1, np.float32)
        clipped = oracle.clipped(rows, reference, 9.0).astype(np.float32)
        found = NormClipping(9.0).then(MoNNA(2))(rows, reference=reference, server=server)
        np.testing.assert_allclose(found, MoNNA(2)(clipped, server=server), rtol=1e-5, atol=1e-5)
        formed = selecting.mixed(clipped, 1).astype(np.float32)
        found = NormClipping(9.0).then(NNM(1)).then(MoNNA(2))(rows, reference=reference, server=server)
        np.testing.assert_allclose(found, MoNNA(2)(formed, server=server), rtol=1e-5, atol=1e-5)


def test_weights_reach_a_rule_that_uses_them_and_no_other():
    rows, weights = some_rows(0), np.arange(1, 12)
    expected = oracle.weighted_mean(selecting.mixed(rows, 2), weights)
    np.testing.assert_allclose(NNM(2).then(Mean())(rows, weights), expected, rtol=1e-5, atol=1e-5)
    assert NNM(2)(rows, weights).tobytes() == NNM(2)(rows).tobytes() == NNM(2).then(Mean())(rows).tobytes()
    assert NNM(2).then(MultiKrum(2))(rows, weights).tobytes() == NNM(2).then(MultiKrum(2))(rows).tobytes()


def test_says_which_clients_are_in_no_row_that_counts():
    rows = some_rows(0)
    rows[4] += 50
    decision = decided(NNM(2).then(Krum(2)), rows)
    counted = np.flatnonzero(decision.values)
    assert set(decision.reasons) == set(range(11)) - set(counted)
    assert "mixed rows" in decision.reasons[4]
    assert len(counted) == 9
    assert decision.details["mixed_rows"]["selected"] == oracle.multi_krum_rows(selecting.mixed(rows, 2), 2, 1)
    assert len(decision.details["mixed_rows"]["scores"]) == 11
    assert decision.before[0].per_client["neighbor_of"].sum() == 11 * 9


def test_details_of_inner_stages_are_kept():
    decision = decided(Bucketing(2, seed=0).then(NNM(1)).then(Krum(1)), some_rows(0))
    assert [stage.rule.partition("(")[0] for stage in decision.before] == ["Bucketing", "NearestNeighborMixing"]
    assert len(decision.before[1].details["neighbor_of"]) == 6
    assert decision.before[1].per_client == {}


@pytest.mark.parametrize(("n", "f", "largest"), [(4, 2, 1), (5, 3, 2), (1, 1, 0)])
def test_f_too_large_says_the_largest(n, f, largest):
    with pytest.raises(RuleError, match=f"largest f for n={n} is {largest}"):
        NNM(f)(np.zeros((n, 4), np.float32))
    NNM(largest).check(n)


class GramOnly:
    """An executor that has a Gram matrix and no data: whatever decides on it reads none."""

    def __init__(self, matrix: np.ndarray):
        self.matrix, self.clients, self.references = matrix, len(matrix), 0
        self.names = [f"row {i}" for i in range(len(matrix))]

    def gram(self, origin: int | None = None) -> Gram:
        return Gram(self.matrix, 1e-12 * self.matrix.diagonal(), 0.0, 1e-12)


def test_a_thousand_clients_take_no_seconds_in_n_space():
    x = np.random.default_rng(0).standard_normal((1000, 50)) * np.linspace(1, 2, 1000)[:, None]
    x[:200] += 50
    statistics = Statistics(GramOnly(x @ x.T))
    geometry = Geometry(statistics)
    start = time.process_time()
    matrix = NNM(249).mixing(geometry, None).matrix
    assert matrix[-1, :200].sum() == 0
    took = time.process_time() - start
    assert took < 3, f"took {took:.1f} s of processor time"
