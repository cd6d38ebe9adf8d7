"""MoNNA averages the rows nearest to a trusted one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedcore as fc
from fedcore.errors import NonFiniteError, RuleError
from fedcore.rules import Bucketing, Median, MoNNA, NearestNeighborMixing, NormClipping
from tests.cohorts import WrongWithinBound, check_reasons, cohorts, decided
from tests.oracles import rules as oracle
from tests.oracles import selecting


@settings(deadline=None, max_examples=80)
@given(cohorts(), st.data())
def test_takes_the_oracles_rows_with_ties_and_duplicates(rows, data):
    n = len(rows)
    f = data.draw(st.integers(0, (n - 1) // 2))
    server = rows[data.draw(st.integers(0, n - 1))] * np.float32(data.draw(st.sampled_from([1.0, 0.5, -1.0])))
    decision = decided(MoNNA(f), rows, server=server, kind=WrongWithinBound)
    assert decision.selected == selecting.nearest_rows(rows, server, f)
    assert decision.values[n] == 0
    check_reasons(decision, n)
    pivot = data.draw(st.integers(0, n - 1))
    decision = decided(MoNNA(f, pivot), rows)
    assert decision.selected == selecting.neighborhoods(rows, f)[pivot]
    check_reasons(decision, n)


def test_result_is_the_plain_mean_and_the_server_is_not_in_it():
    rows = np.random.default_rng(0).standard_normal((9, 500)).astype(np.float32)
    rows[4] += 50
    server = rows[1] + np.float32(0.01)
    kept = selecting.nearest_rows(rows, server, 2)
    assert 4 not in kept
    np.testing.assert_allclose(MoNNA(2)(rows, server=server), rows[kept].astype(float).mean(0), rtol=1e-6, atol=1e-7)
    assert MoNNA(2).uses == ("server",)
    assert MoNNA(2, pivot=0).uses == ()
    squares = oracle.squared_distances(np.vstack((rows, server)))[9, :9]
    assert decided(MoNNA(2), rows, server=server).per_client["distances"].tolist() == np.sqrt(squares).tolist()


def test_a_missing_server_row_and_a_pivot_out_of_range_are_refused():
    rows = np.zeros((5, 3), np.float32)
    with pytest.raises(RuleError, match="pass server="):
        MoNNA(1)(rows)
    with pytest.raises(RuleError, match="pivot=5 with n=5 clients, expected at most 4"):
        MoNNA(1, pivot=5)(rows)
    with pytest.raises(RuleError, match="got pivot=-1"):
        MoNNA(1, pivot=-1)


@pytest.mark.parametrize(("n", "f", "largest"), [(4, 2, 1), (5, 3, 2), (1, 1, 0)])
def test_f_too_large_says_the_largest(n, f, largest):
    with pytest.raises(RuleError, match=f"largest f for n={n} is {largest}"):
        MoNNA(f, pivot=0)(np.zeros((n, 4), np.float32))
    MoNNA(largest, pivot=0)(np.zeros((n, 4), np.float32))


def updates_of(rows, first=0):
    return [
        fc.Update.from_tensors({"a": row[:10], "b": row[10:]}, client_id=f"c{i}") for i, row in enumerate(rows, first)
    ]


def test_nan_names_the_client_and_the_tensor_or_the_server():
    rows = np.random.default_rng(0).standard_normal((7, 40)).astype(np.float32)
    updates = updates_of(rows)
    rows[3, 25], rows[6, 5] = np.nan, np.inf
    rule, server = MoNNA(1), updates[0]
    with pytest.raises(NonFiniteError, match="client 'c3': tensor 'b' holds NaN or Inf at element 15; exclude"):
        fc.aggregate(bad := [*updates[:3], *updates_of(rows[3:4], 3)], rule, "parameters", server=server)
    found = fc.aggregate(bad, rule, "parameters", server=server, on_nonfinite="exclude")
    assert list(found.excluded) == ["c3"]
    with pytest.raises(
        NonFiniteError, match="the server: tensor 'a' holds NaN or Inf at element 5; train the server's update again"
    ):
        fc.aggregate(updates, rule, "parameters", server=updates_of(rows[6:], 6)[0], on_nonfinite="exclude")
    with pytest.raises(
        NonFiniteError, match="the server: holds NaN or Inf at column 5; train the server's update again"
    ):
        rule(rows[:3], server=rows[6])
    rows[6, 5] = 0
    for rule in (MoNNA(1, pivot=5), NearestNeighborMixing(1).then(MoNNA(1, pivot=5))):  # the same client is trusted
        found = fc.aggregate(updates_of(rows), rule, "parameters", on_nonfinite="exclude")
        assert "MoNNA(f=1, pivot=4)" in found.report["rule"]
        distances = found.report.get("mixed_rows", found.report)["distances"]
        distances = list(distances.values()) if isinstance(distances, dict) else distances
        assert [k for k, distance in enumerate(distances) if distance == 0] == [4]
    with pytest.raises(RuleError, match="the trusted row, pivot=3, was excluded"):
        fc.aggregate(updates_of(rows), MoNNA(1, pivot=3), "parameters", on_nonfinite="exclude")
    with pytest.raises(NonFiniteError, match="row 3: holds NaN or Inf at column 25; drop"):
        MoNNA(1, pivot=3)(rows[:6])


def test_a_budget_knows_of_the_gram_that_mixtures_take():
    for rule in (Bucketing(2, 1).then(MoNNA(1, pivot=0)), NormClipping(2.0).then(Bucketing(1, 1).then(MoNNA(1)))):
        assert "gram" in rule.needs
    assert not MoNNA(1, pivot=0).needs
    assert not Bucketing(2, 1).then(Median()).needs
