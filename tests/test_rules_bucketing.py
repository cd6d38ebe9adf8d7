"""Bucketing: every row in one bucket, the same buckets for the same seed and round, and means that go on."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedcore as fc
from fedcore.errors import RuleError
from fedcore.rules import Bucketing, Krum, Mean, MoNNA, MultiKrum, NearestNeighborMixing, NormClipping
from tests.cohorts import decided
from tests.oracles import rules as oracle
from tests.oracles import selecting


def buckets_of(rule: Bucketing, n: int) -> list[list[int]]:
    order = rule.order(n)
    return [order[start : start + rule.s] for start in range(0, n, rule.s)]


def formed(rule: Bucketing, rows: np.ndarray) -> np.ndarray:
    return selecting.bucketed(rows, rule.order(len(rows)), rule.s)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(-5, 2**64), st.integers(0, 100))
def test_each_row_is_in_one_bucket_and_only_the_last_is_smaller(n, s, seed, number):
    rule = Bucketing(s, seed, number)
    buckets = buckets_of(rule, n)
    assert sorted(row for bucket in buckets for row in bucket) == list(range(n))
    assert len(buckets) == rule.rows(n)
    assert all(len(bucket) == s for bucket in buckets[:-1])
    matrix = decided(rule.then(Mean()), np.ones((n, 2), np.float32)).values
    assert (matrix > 0).all()


def test_the_order_is_that_of_digests_and_moves_with_seed_and_round():
    digests = [hashlib.sha256(f"7:3:{row}".encode()).hexdigest() for row in range(20)]
    assert Bucketing(2, 7, 3).order(20) == np.argsort(digests).tolist()
    assert Bucketing(2, 7).for_round(3) == Bucketing(2, 7, 3)
    assert Bucketing(2, 7).then(Krum(1)).for_round(3) == Bucketing(2, 7, 3).then(Krum(1))
    orders = {tuple(Bucketing(2, seed, number).order(20)) for seed in range(5) for number in range(5)}
    assert len(orders) == 25


def test_every_row_is_as_likely_to_be_anywhere():
    places = np.array([Bucketing(1, seed=0, round=number).order(8) for number in range(4000)])
    counts = np.array([np.bincount(column, minlength=8) for column in places.T])
    # chi-square of 64 cells with 49 degrees of freedom: its mean is 49, and 95 is beyond 4 standard deviations
    assert np.square(counts - 500).sum() / 500 < 95


@pytest.mark.parametrize("following", [Krum(1), MultiKrum(1), Krum(2, "byzfl")])
@pytest.mark.parametrize("s", [1, 2, 3])
def test_composition_equals_two_steps_on_rows_that_were_formed(following, s):
    for seed in range(6):
        rows = np.random.default_rng(seed).standard_normal((17, 60)).astype(np.float32)
        rows[seed] += [0, 50, 1e6][seed % 3]
        rule = Bucketing(s, seed)
        expected = following(formed(rule, rows).astype(np.float32))
        np.testing.assert_allclose(rule.then(following)(rows), expected, rtol=1e-5, atol=1e-5)


def test_weights_make_the_weighted_mean_of_all_where_they_were_asked_for():
    rows, weights = np.random.default_rng(0).standard_normal((11, 40)).astype(np.float32), np.arange(1, 12)
    found = Bucketing(3, 0).then(Mean())(rows, weights)
    np.testing.assert_allclose(found, oracle.weighted_mean(rows, weights), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(Bucketing(3, 0)(rows, weights), formed(Bucketing(3, 0), rows).mean(0), atol=1e-6)
    lies = [1e30, float("nan"), *range(9)]
    for rule in (Bucketing(3, 0).then(Krum(0)), Bucketing(2, 0).then(NearestNeighborMixing(1)).then(MultiKrum(1))):
        assert rule(rows, lies).tobytes() == rule(rows).tobytes()


def test_says_who_was_in_a_bucket_that_does_not_count():
    rows = np.random.default_rng(0).standard_normal((10, 40)).astype(np.float32)
    rule = Bucketing(2, 5)
    decision = decided(rule.then(Krum(1)), rows)
    (bucket,) = oracle.multi_krum_rows(formed(rule, rows), 1, 1)
    kept = buckets_of(rule, 10)[bucket]
    assert np.flatnonzero(decision.values).tolist() == sorted(kept)
    assert set(decision.reasons) == set(range(10)) - set(kept)
    assert decision.before[0].per_client["bucket"][kept].tolist() == [bucket, bucket]


def test_the_rule_that_follows_is_checked_for_the_number_of_buckets():
    with pytest.raises(RuleError, match="largest f for n=6 is 1"):
        Bucketing(2, 0).then(Krum(2))(np.zeros((11, 4), np.float32))


@pytest.mark.parametrize(
    ("parameters", "text"),
    [((0, 1), "got s=0"), ((2, 1, -1), "got round=-1"), ((2, 1.5), "got seed=1.5"), ((2, True), "got seed=True")],
)
def test_bad_parameters_are_refused(parameters, text):
    with pytest.raises(RuleError, match=text):
        Bucketing(*parameters)


@pytest.mark.parametrize("s", [1, 2, 3])
@pytest.mark.parametrize("first", [[], [NormClipping(50.0)]])
def test_a_bucket_keeps_its_number_whoever_is_excluded(s, first):
    """Row 1 of what it hands on is a bucket and not client 1."""
    for bad in range(9):
        rows = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
        rows[bad, 0] = np.nan
        updates = [fc.Update.from_tensors({"w": row}, client_id=f"c{i}") for i, row in enumerate(rows)]
        rule = Bucketing(s, 3).then(MoNNA(0, pivot=1))
        for one in first:
            rule = one.then(rule)
        found = fc.aggregate(updates, rule, "parameters", on_nonfinite="exclude")
        assert list(found.excluded) == [f"c{bad}"]
        assert found.report["rule"] == repr(rule)
