"""Geometric median, centred clipping, FLTrust, the spectral filter and ARC against fp64 on ready matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.errors import RuleError
from fedcore.rules import (
    ARC,
    CenteredClipping,
    FLTrust,
    GeometricMedian,
    Krum,
    Mean,
    NormClipping,
    SpectralFilter,
    first_eigenvector,
    geometric_median,
)
from fedcore.rules.geometry import Geometry
from fedcore.rules.rows import RowExecutor
from fedcore.rules.statistics import Statistics
from tests.oracles import iterative as oracle

cohorts = st.tuples(st.integers(3, 24), st.integers(1, 400), st.integers(0, 2**16))


def cohort(n: int, d: int, seed: int, far: int = 0, scale: float = 50.0) -> np.ndarray:
    """n rows around a common point; the last `far` of them lie far away."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=d) * 0.1 + rng.normal(size=(n, d))
    rows[n - far :] += scale
    return rows.astype(np.float32)


def decided(rule, rows, **references):
    found = {name: references.get(name) for name in rule.uses}
    executor = RowExecutor.from_rows(rows, references=found, backend=None, threads=1)
    return rule.decide(Geometry(Statistics(executor)), None)


def check_close(found, expected, rows):
    scale = np.abs(np.asarray(rows, np.float64)).max() + 1e-30
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=3e-6 * scale)


@settings(max_examples=40, deadline=None)
@given(cohorts)
def test_the_geometric_median_has_the_least_sum_of_distances(case):
    rows = cohort(*case)
    found = GeometricMedian()(rows).astype(np.float64)
    least = oracle.distance_sum(rows.astype(np.float64), oracle.geometric_median(rows, 2000))
    assert oracle.distance_sum(rows.astype(np.float64), found) <= least * (1 + 1e-6)


def test_the_geometric_median_converges_and_says_so():
    rows = cohort(40, 300, 1, far=15)
    decision = decided(GeometricMedian(), rows)
    assert decision.details["gradient"] <= 1e-9
    assert decision.details["converged"]
    assert decision.details["redone_pairs"] == 0
    check_close(GeometricMedian()(rows), oracle.geometric_median(rows), rows)


@pytest.mark.parametrize("spread", [1e-1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("n", [10, 100])
def test_the_geometric_median_converges_between_two_narrow_clusters_of_one_size(n, spread):
    """Where the sum of distances hardly changes: Weiszfeld's steps alone take more than 20,000."""
    rows = spread * np.random.default_rng(1).normal(size=(n, 50)) / np.sqrt(50)
    rows[: n // 2] += 1 / np.sqrt(50)
    rows = rows.astype(np.float32)
    decision = decided(GeometricMedian(), rows)
    assert decision.details["converged"]
    assert decision.details["steps"] < 100
    assert (decision.details["redone_pairs"] > 0) == (spread < 1e-2)
    wide = rows.astype(np.float64)
    away = decision.values[:n] @ wide - wide
    # the Gram is of fp32 products
    assert np.linalg.norm((away / np.linalg.norm(away, axis=1)[:, None]).mean(0)) <= 1e-7


def test_the_geometric_median_says_where_it_has_not_converged(monkeypatch):
    monkeypatch.setattr(geometric_median, "MOST_STEPS", 3)
    found = decided(GeometricMedian(), cohort(40, 300, 1, far=15)).details
    assert found["gradient"] > 1e-9
    assert not found["converged"]


@pytest.mark.parametrize("d", [1, 5])
@pytest.mark.parametrize("n", [6, 20, 34])
def test_of_an_even_number_of_colinear_rows_the_lower_of_the_middle_two_is_the_geometric_median(n, d):
    """Each point between those two is one, and coefficients are not unique."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rows = np.outer(rng.standard_normal(n), rng.standard_normal(d)).astype(np.float32)
        decision = decided(GeometricMedian(), rows)
        found, wide = decision.details, rows.astype(np.float64)
        assert found["converged"], (seed, found)
        places = np.argsort(wide[:, 0])
        assert np.flatnonzero(decision.values).tolist() == [min(places[n // 2 - 1], places[n // 2])]
        assert found["steps"] == 0
        assert found["gradient"] <= max(1e-9, found["noise"])
        assert found["noise"] <= 2.0**-22 * n
        least = min(oracle.distance_sum(wide, row) for row in wide)
        assert oracle.distance_sum(wide, decision.values[:n] @ wide) <= least * (1 + 1e-6)


def test_a_client_near_the_geometric_median_does_not_pass_for_it():
    # the two in the middle pull with 2 of 5 and a little more than what the first one holds
    rows = np.array([[0, 0], [0, 1], [0, -1], [1, 1e-2], [-1, 1e-2], [0.2, 1]], np.float32)
    found = decided(GeometricMedian(), rows)
    assert found.details["converged"]
    assert found.details["steps"] > 0
    assert found.details["gradient"] <= 1e-9
    np.testing.assert_allclose(GeometricMedian()(rows), oracle.geometric_median(rows, 20_000), atol=1e-5)


def test_the_step_away_from_a_client_goes_down(monkeypatch):
    """Weiszfeld's whole step from there, which leaves out what the client holds, would go up."""
    monkeypatch.setattr(geometric_median, "MOST_STEPS", 1)
    rows = np.array([[0, 0], [0, 1], [0, -1], [1, 1e-2], [-1, 1e-2], [0.2, 1]], np.float32)
    wide = rows.astype(np.float64)
    point = decided(GeometricMedian(), rows).values @ wide
    assert point.any()
    assert oracle.distance_sum(wide, point) < min(oracle.distance_sum(wide, row) for row in wide)


def test_a_step_of_newtons_shortens_the_gradient_and_does_not_go_up():
    taken = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(6, 3)) * rng.uniform(0.01, 3, (6, 1))
        share = np.full(6, 1 / 6)
        descent = geometric_median._Descent(share, rows @ rows.T, np.full(6, 1e-9))
        weights = rng.uniform(0, 1, 6) ** 6
        before = descent.at(weights / weights.sum())
        if after := descent.newton(before):
            taken += 1
            assert after.gradient < before.gradient
            assert share @ after.away <= share @ before.away * (1 + 1e-9)
    assert 0 < taken < 60


def test_the_geometric_median_may_be_a_client_and_then_is_that_client_exactly():
    rows = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)
    assert GeometricMedian()(rows).tolist() == [0, 0]
    majority = np.vstack((np.tile(cohort(1, 50, 3), (4, 1)), cohort(3, 50, 4, far=3)))
    assert (GeometricMedian()(majority) == majority[0]).all()


def test_the_iteration_leaves_a_client_that_is_not_the_median():
    # Weiszfeld's own step, started at the best client, would stay there for ever
    rows = np.array([[0, 0], [4, 0], [0, 4], [1, 1.5]], np.float32)
    found = GeometricMedian()(rows)
    check_close(found, oracle.geometric_median(rows), rows)


def test_reported_weights_move_the_geometric_median_only_where_asked():
    rows = cohort(7, 30, 5, far=2)
    weights = [1, 1, 1, 1, 1, 1000, 1000]
    assert (GeometricMedian()(rows, weights) == GeometricMedian()(rows)).all()
    moved = GeometricMedian(weighted=True)(rows, weights)
    assert np.linalg.norm(moved - rows[5]) < np.linalg.norm(moved - rows[0])


def test_the_smoothed_form_is_byzfl_and_for_short_rows_the_mean():
    rows = cohort(9, 60, 6)
    rule = GeometricMedian(smoothing=0.1, steps=3)
    check_close(rule(rows), oracle.smoothed_geometric_median(rows, np.zeros(60), 0.1, 3), rows)
    short = (rows * 1e-3).astype(np.float32)
    np.testing.assert_allclose(rule(short), short.mean(0), atol=1e-8)
    with pytest.raises(RuleError, match="expected both"):
        GeometricMedian(smoothing=0.1)


@settings(max_examples=40, deadline=None)
@given(cohorts, st.floats(0.1, 100), st.integers(1, 6), st.booleans())
def test_centered_clipping_equals_the_oracle(case, radius, iterations, with_center):
    rows = cohort(*case, far=1)
    center = cohort(1, case[1], case[2] + 1)[0] if with_center else np.zeros(case[1], np.float32)
    found = CenteredClipping(radius, iterations)(rows, center=center if with_center else None)
    check_close(found, oracle.centered_clipping(rows, center, radius, iterations), rows)


def test_a_center_is_the_reference_where_none_is_given():
    rows, reference = cohort(6, 40, 7), cohort(1, 40, 8)[0]
    rule = CenteredClipping(0.5, 2)
    assert (rule(rows, reference=reference) == rule(rows, center=reference)).all()
    assert not (rule(rows, reference=reference) == rule(rows)).all()


def test_clients_that_are_clipped_are_counted():
    """One at the radius is not: its factor is 1, as is that of a near one."""
    rows = np.array([[0.5, 0], [0, 2], [30, 0], [0, -7]], np.float32)
    found = decided(CenteredClipping(2.0), rows)
    assert found.details["clipped"] == 2
    np.testing.assert_allclose(found.per_client["clipping_factors"], [1, 1, 2 / 30, 2 / 7], rtol=1e-12)


def test_an_attacker_moves_centered_clipping_by_no_more_than_its_share():
    rows = cohort(10, 100, 9)
    center = rows.mean(0)
    moved = rows.copy()
    moved[9] += 1e6
    before, after = (CenteredClipping(1.0, 3)(x, center=center) for x in (rows, moved))
    assert np.linalg.norm(after - before) <= 2 * 3 * 1.0 / 10


@settings(max_examples=40, deadline=None)
@given(cohorts, st.booleans())
def test_fltrust_equals_the_oracle(case, with_reference):
    rows = cohort(*case, far=1)
    d = case[1]
    reference = cohort(1, d, case[2] + 1)[0] if with_reference else np.zeros(d, np.float32)
    server = reference + cohort(1, d, case[2] + 2)[0]
    found = FLTrust()(rows, reference=reference if with_reference else None, server=server)
    expected = oracle.fltrust(rows, reference.astype(np.float64), server)
    check_close(found, expected, np.vstack((rows, server[None])))


def test_fltrust_needs_a_server_that_moved_and_leaves_out_who_points_away():
    rows = cohort(5, 50, 10)
    server = rows[:3].mean(0)
    with pytest.raises(RuleError, match="got no server row"):
        FLTrust()(rows)
    with pytest.raises(RuleError, match="equals the reference"):
        FLTrust()(rows, reference=server, server=server)
    away = np.vstack((rows, -1000 * server[None])).astype(np.float32)
    decision = decided(FLTrust(), away, reference=None, server=server)
    assert "not trusted" in decision.reasons[5]
    nobody = FLTrust()(np.tile(-server, (3, 1)), server=server)
    assert not nobody.any()


@pytest.mark.parametrize("first", [[], [NormClipping(1.0)]])
def test_fltrust_stays_where_no_client_points_to_one_side_of_what_rounds(first):
    """(a, a) and (b, −b) are at right angles, which no Gram of fp32 products says exactly."""
    rng = np.random.default_rng(0)
    rule = first[0].then(FLTrust()) if first else FLTrust()
    for _ in range(30):
        a, b = rng.normal(size=8), rng.normal(size=(5, 8))
        rows, server = np.hstack((b, -b)).astype(np.float32), np.hstack((a, a)).astype(np.float32)
        decision = decided(rule, rows, reference=None, server=server)
        assert not decision.values[:5].any()
        assert sorted(decision.reasons) == list(range(5))
        assert not rule(rows, server=server).any()


def test_fltrust_counts_who_points_the_servers_way_by_less_than_a_gram_tells():
    rows = np.array([[1.0, 1e-9], [1.0, -1e-9], [1e20, 1e11]], np.float32)
    server = np.array([0.0, 1.0], np.float32)
    decision = decided(FLTrust(), rows, reference=None, server=server)
    assert decision.details["redone_pairs"] > 0
    np.testing.assert_allclose(decision.per_client["trust"], [1e-9, 0.0, 1e-9], rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(5, 20), st.integers(2, 200), st.integers(0, 2**16), st.integers(1, 2))
def test_the_spectral_filter_equals_the_oracle(n, d, seed, f):
    rows = cohort(n, d, seed, far=f)
    expected, least = oracle.spectral_filter(rows, f)
    # where two eigenvalues meet the filter goes to and fro between them, and rounding decides where it ends: then the
    # eigenvalue is what can be compared
    found = decided(SpectralFilter(f), rows).details["first_eigenvalue"]
    assert found == pytest.approx(least, rel=2e-3, abs=1e-9 * float(np.square(rows).sum()))
    if np.abs(found - least) < 1e-7 * least:
        check_close(SpectralFilter(f)(rows), expected, rows)


def test_the_spectral_filter_drops_a_far_minority_and_says_why():
    rows = cohort(30, 500, 11, far=6)
    decision = decided(SpectralFilter(6), rows)
    assert np.linalg.norm(SpectralFilter(6)(rows) - rows[:24].mean(0)) < 5
    assert set(decision.reasons) & set(range(24, 30))
    assert not SpectralFilter(0)(np.zeros((3, 4), np.float32)).any()


def test_without_attackers_the_filter_takes_no_step():
    """All of the weight is n − 2 · 0, and may stay."""
    decision = decided(SpectralFilter(0), cohort(9, 50, 3))
    assert decision.details["filter_steps"] == 0
    assert np.isfinite(decision.details["first_eigenvalue"])
    assert decision.values.tolist() == [1.0] * 9


@pytest.mark.parametrize("scale", [2.0, 20.0])
def test_large_cohorts_are_filtered_as_by_all_eigenvectors(monkeypatch, scale):
    rows = cohort(260, 400, 12, far=20, scale=scale)
    found = decided(SpectralFilter(20), rows)
    check_close(SpectralFilter(20)(rows), oracle.spectral_filter(rows, 20)[0], rows)
    monkeypatch.setattr(first_eigenvector, "DENSE", 260)
    expected = decided(SpectralFilter(20), rows)
    assert found.details["filter_steps"] == expected.details["filter_steps"] > 1
    np.testing.assert_allclose(found.values, expected.values, atol=1e-9)


def test_the_filter_stops_at_the_weight_that_must_be_left_whatever_the_gram_rounds():
    """Eight clients at one place and four at another: the first step leaves exactly 12 − 2 · 3."""
    rows = np.repeat([[-0.722], [0.278]], [8, 4], axis=0).astype(np.float32)
    decision = decided(SpectralFilter(3), rows)
    assert decision.details["filter_steps"] == 1
    assert decision.values[:12].tolist() == [1.0] * 12


@pytest.mark.parametrize("f", [0, 1, 3])
@pytest.mark.parametrize("with_reference", [True, False])
def test_arc_equals_the_oracle(f, with_reference):
    rows, reference = cohort(9, 70, 13 + f, far=min(f, 2)), cohort(1, 70, 14)[0]
    base = reference if with_reference else np.zeros(70, np.float32)
    found = ARC(f)(rows, reference=reference if with_reference else None)
    check_close(found, oracle.adaptively_clipped(rows, base.astype(np.float64), f).mean(0), rows)


def test_arc_goes_before_another_rule():
    rows = cohort(11, 90, 15, far=2)
    clipped = oracle.adaptively_clipped(rows, np.zeros(90), 2).astype(np.float32)
    assert np.allclose(ARC(2).then(Krum(2))(rows), Krum(2)(clipped), atol=1e-5)
    median = ARC(2).then(GeometricMedian())(rows)
    check_close(median, oracle.geometric_median(clipped), rows)


@pytest.mark.parametrize("rule", [GeometricMedian(), CenteredClipping(1.0, 2), SpectralFilter(2)])
def test_compositions_equal_two_steps(rule):
    rows = cohort(9, 120, 16, far=2)
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    formed = (rows * np.minimum(1, 8.0 / norms)).astype(np.float32)
    check_close(NormClipping(8.0).then(rule)(rows), rule(formed), rows)


@pytest.mark.parametrize("rule", [SpectralFilter(3), ARC(3)])
def test_too_many_attackers_are_refused_with_the_largest_f(rule):
    with pytest.raises(RuleError, match="largest f for n=6 is 2"):
        rule(cohort(6, 5, 17))


@pytest.mark.parametrize("rule", [GeometricMedian(), CenteredClipping(1e9), SpectralFilter(0), ARC(0)])
def test_one_client_alone_and_equal_clients_give_that_row(rule):
    row = cohort(1, 33, 18)
    np.testing.assert_allclose(rule(row), row[0], rtol=1e-6)
    np.testing.assert_allclose(rule(np.tile(row, (5, 1))), row[0], rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [lambda: CenteredClipping(0), lambda: CenteredClipping(1.0, 0), lambda: ARC(-1), lambda: SpectralFilter(1.5)],
)
def test_parameters_are_checked(make):
    with pytest.raises(RuleError, match="expected"):
        make()


def test_no_rule_here_averages_what_a_mean_would():
    rows = cohort(10, 50, 19, far=3, scale=1e4)
    honest = rows[:7].mean(0)
    for rule in (GeometricMedian(), SpectralFilter(3), ARC(3).then(GeometricMedian())):
        assert np.linalg.norm(rule(rows) - honest) < 20 < np.linalg.norm(Mean()(rows) - honest)


@pytest.mark.parametrize("scale", [1e3, 1e5, 1e10, 1e16, 1e30])
def test_what_honest_rows_are_to_each_other_is_not_lost_beside_far_ones(scale):
    rows, center = cohort(11, 60, 20), np.zeros(60, np.float32)
    server = rows[:9].mean(0)
    rows[9:] = scale * np.sign(np.random.default_rng(21).normal(size=60))
    spread = np.linalg.norm(rows[:9] - server, axis=1).mean()
    expected = {
        GeometricMedian(): oracle.geometric_median(rows, 1000),
        GeometricMedian(smoothing=0.1, steps=3): oracle.smoothed_geometric_median(rows, center, 0.1, 3),
        CenteredClipping(5.0, 3): oracle.centered_clipping(rows, center, 5.0, 3),
        SpectralFilter(2): oracle.spectral_filter(rows, 2)[0],
        FLTrust(): oracle.fltrust(rows, center, server),
    }
    for rule, value in expected.items():
        found = rule(rows, **({"server": server} if "server" in rule.uses else {}))
        assert np.linalg.norm(found - value) <= 1e-3 * spread, rule


def test_the_spectral_filter_ends_whatever_a_client_sends():
    for n, far, scale in ((7, 1, 1e4), (20, 4, 1e5), (50, 5, 3e3)):
        rows = cohort(n, 80, 22)
        rows[n - far :] *= scale
        assert decided(SpectralFilter((n - 1) // 2), rows).details["filter_steps"] <= n
