"""Clients who send nearly the same row, or the same adapter: the geometric median is what it is without rounding."""

from __future__ import annotations

import numpy as np
import pytest

from fedcore.rules import GeometricMedian, NormClipping, geometric_median, median_client
from fedcore.rules.distances import Distances
from fedcore.rules.geometry import Geometry
from fedcore.rules.median_pull import pull_at
from fedcore.rules.statistics import Statistics
from tests.cohorts import decided, executor_of
from tests.oracles import median as oracle
from tests.oracles.median import LONG, lengths

APART = [1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-12, 1e-15, 1e-20, 1e-40]
OFFSETS = [0.0, 1.0, 100.0]


def apart(row: np.ndarray, distance: float) -> np.ndarray:
    """The row with its first element, which is 0, moved by that much."""
    moved = row.copy()
    moved[0] = distance
    return moved


def honest(rng: np.random.Generator, n: int, d: int, offset: float) -> np.ndarray:
    rows = (rng.standard_normal((n, d)) + offset).astype(np.float32)
    rows[:, 0] = 0
    return rows


def pair_aside(rng, n, offset, distance):
    """Two attackers beside the median."""
    rows = honest(rng, n, 3, offset)
    aside = (rows.mean(0) + 0.6 * np.insert(rng.standard_normal(2), 0, 0)).astype(np.float32)
    return np.vstack((rows, aside, apart(aside, distance)))


def copy_of_the_most_central(rng, n, offset, distance):
    """One attacker next to the honest client that the search starts from."""
    rows = honest(rng, n, 3, offset)
    central = rows[np.argmin([lengths(rows.astype(LONG) - row).sum() for row in rows])]
    return np.vstack((rows, apart(central, distance)))


def pair_that_nearly_holds(rng, n, offset, distance):
    """Two attackers so near the median that it lies with them, or just does not."""
    rows = honest(rng, n, 3, offset)
    near = (rows.mean(0) + 0.1 * np.insert(rng.standard_normal(2), 0, 0)).astype(np.float32)
    return np.vstack((rows, near, apart(near, distance)))


def group_that_holds(rng, n, offset, distance):
    """A third of the cohort around one point, where the median lies."""
    rows = honest(rng, n, 3, offset)
    center = rows.mean(0)
    return np.vstack((rows, center, *(apart(center, distance * (i + 1) * (-1) ** i) for i in range(max(2, n // 3)))))


def majority(rng, n, offset, distance):
    """More than half around one honest row."""
    rows = honest(rng, n, 3, offset)
    return np.vstack((rows, *(apart(rows[0], distance * (i + 1) * (-1) ** i) for i in range(n + 1))))


COHORTS = [pair_aside, copy_of_the_most_central, pair_that_nearly_holds, group_that_holds, majority]


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("cohort", COHORTS, ids=lambda cohort: cohort.__name__)
def test_near_duplicates_do_not_pass_for_the_geometric_median(cohort, offset):
    for distance in APART:
        for seed in range(4):
            rng = np.random.default_rng(seed)
            rows = cohort(rng, (6, 9, 20, 40)[seed], offset, distance)
            decision = decided(GeometricMedian(), rows)
            details, n, case = decision.details, len(rows), (distance, seed, decision.details)
            assert details["converged"], case
            assert details["gradient"] <= max(1e-9, details["noise"]), case
            assert details["noise"] <= 2.0**-22 * n, case
            seen = rows.astype(LONG) - rows[0].astype(LONG)
            median, share = oracle.geometric_median(seen), decision.values[:n].astype(LONG)
            assert lengths(share / share.sum() @ seen - median) <= 1e-6, case


@pytest.mark.parametrize("distance", [1e-6, 1e-12, 1e-15, 1e-20, 1e-40])
@pytest.mark.parametrize("offset", OFFSETS)
def test_two_of_a_hundred_gain_nothing_by_a_hair_between_them(offset, distance):
    rng = np.random.default_rng(0)
    rows = honest(rng, 98, 300, 0.0) * np.float32(0.01) + np.float32(offset)
    rows[:, 0] = 0
    far = np.insert(rng.standard_normal(299), 0, 0)
    aside = (rows.mean(0) + 0.2 * far / np.linalg.norm(far)).astype(np.float32)
    same, near = (decided(GeometricMedian(), np.vstack((rows, aside, apart(aside, x)))) for x in (0.0, distance))
    assert same.details["converged"]
    assert near.details["converged"]
    np.testing.assert_allclose(near.values, same.values, atol=1e-6)
    assert near.values.max() < 0.1


def test_what_is_equal_but_for_the_rounding_of_a_mixture_lies_at_one_place():
    """Two attackers who differ by 1e-12 before a clip, which rounds them by more."""
    reference = np.array([0, 100, 100, 100], np.float32)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        rows = honest(rng, 9, 4, 100.0)
        aside = (rows.mean(0) + (0.15, 2.0)[seed % 2] * np.insert(rng.standard_normal(3), 0, 0)).astype(np.float32)
        rows = np.vstack((rows, aside, apart(aside, 1e-12)))
        change = rows.astype(LONG) - reference
        clipped = change * np.minimum(1, 2 / lengths(change))[:, None]
        found = decided(NormClipping(2.0).then(GeometricMedian()), rows, reference=reference).values.astype(LONG)
        assert lengths(found[:11] / found.sum() @ change - oracle.geometric_median(clipped)) <= 1e-6, seed


def pulled(rows: np.ndarray, mix: np.ndarray | None = None):
    """What `pull_at` finds at the last row but one."""
    geometry = Geometry(Statistics(executor_of(rows)))
    geometry = geometry if mix is None else geometry.mixed(mix)
    row, n = geometry.clients - 2, geometry.clients
    distances, wanted = Distances(geometry), np.zeros((n, n), bool)
    wanted[row] = True
    distances.redo(wanted)
    return pull_at(geometry, np.full(n, 1 / n), row, distances)


@pytest.mark.parametrize("offset", [*OFFSETS, 1e4])
@pytest.mark.parametrize("distance", [1e-3, *APART])
def test_the_pull_at_a_client_is_known_whatever_lies_next_to_it(distance, offset):
    for seed in range(6):
        rows = pair_aside(np.random.default_rng(seed), 9, offset, distance)
        force, slack, here = pulled(rows)
        change = (rows.astype(LONG) - rows[-2].astype(LONG))[~here]
        expected = lengths((change / lengths(change)[:, None]).sum(0) / len(rows))
        assert abs(force - expected) <= max(slack, 2.0**-40)
        assert slack <= 2.0**-22
        assert np.flatnonzero(here).tolist() in ([9], [9, 10])
        assert here[10] or distance > 1e-12
        assert not here[10] or distance < 1e-8


def test_a_mixture_next_to_another_lies_there_where_its_rounding_hides_the_direction():
    rows = pair_aside(np.random.default_rng(0), 9, 100.0, 1e-12)
    mix = 0.75 * np.eye(11)
    mix[:, 0] += 0.25
    force, slack, here = pulled(rows, mix)
    assert np.flatnonzero(here).tolist() == [9, 10]
    change = mix @ (rows.astype(LONG) - rows[-2].astype(LONG))
    change = (change - change[-2])[~here]
    assert abs(force - lengths((change / lengths(change)[:, None]).sum(0) / 11)) <= slack <= 2.0**-22


def test_a_pull_that_is_not_known_certifies_nothing(monkeypatch):
    """Where it may be longer than what the client holds."""
    rows = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)
    geometry, share, here = Geometry(Statistics(executor_of(rows))), np.full(5, 0.2), np.arange(5) == 0
    for slack, median in ((0.0, True), (2.0**-22, True), (1e-3, False)):
        monkeypatch.setattr(median_client, "pull_at", lambda *_, slack=slack: (0.2, slack, here))
        assert median_client._looked_at(geometry, share, 0, Distances(geometry)).median == median
    monkeypatch.setattr(median_client, "pull_at", lambda *_: (0.1, 1e-3, here))
    assert median_client._looked_at(geometry, share, 0, Distances(geometry)).median


def test_the_first_step_is_one_of_the_rest(monkeypatch):
    """A client next to the one that it starts from would draw it there, by share / distance."""
    monkeypatch.setattr(geometric_median, "MOST_STEPS", 1)
    rows = copy_of_the_most_central(np.random.default_rng(1), 20, 0.0, 1e-20)
    found = decided(GeometricMedian(), rows)
    assert not found.details["converged"]
    assert found.values.max() < 0.99
    wide = rows.astype(LONG)
    sums = [lengths(wide - point).sum() for point in (found.values.astype(LONG) @ wide, *wide)]
    assert sums[0] < min(sums[1:])
