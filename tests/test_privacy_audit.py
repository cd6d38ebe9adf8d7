"""Whole releases with the real kernels: what an attacker can tell of one client, and what a crash repeats."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fedcore as fc
from fedcore.privacy import AdaptiveClip, Budget, Central
from fedcore.privacy.noise import draw

pytest.importorskip("dp_accounting", reason="the claimed ε needs dp-accounting, of the extra `train`")
pytest.importorskip("fedcore.ops.discrete_gaussian", reason="this build has no discrete_gaussian")
clip_round = pytest.importorskip("fedcore.ops.clip_round", reason="this build has no clip_round")

DRAWS, DELTA = 1_000_000, 1e-5


def lower_bound(without: np.ndarray, with_client: np.ndarray, deviation: float, delta: float) -> float:
    """A lower bound on ε that holds with probability 0.999: ln((TPR - δ) / FPR) at the best of 60 thresholds.

    Both rates by Bernstein's inequality, with the chance of failure shared among all.
    """
    n, log_share = len(without), math.log(120 / 1e-3)
    best = 0.0
    for threshold in np.linspace(0, 6 * deviation, 60):
        caught = np.count_nonzero(with_client > threshold) / n
        wrong = np.count_nonzero(without > threshold) / n
        caught -= math.sqrt(2 * caught * log_share / n) + log_share / (3 * n)
        wrong += math.sqrt(2 * wrong * log_share / n) + 2 * log_share / n
        if caught > delta:
            best = max(best, math.log((caught - delta) / wrong))
    return best


@pytest.mark.parametrize("z", [1.0, 2.0])
def test_an_audit_finds_less_than_the_claimed_epsilon_and_more_where_noise_is_halved(z):
    """One client at the clip, there or not, a million times: the attacker sees the integer sum."""
    row = np.array([1.0], np.float32)
    moved = clip_round.clip_round(row, 1.0)
    claimed = fc.privacy.epsilon(noise_multiplier=z, delta=DELTA)
    for share, holds in ((1.0, True), (0.5 if z == 1 else 0.25, False)):
        deviation = share * z / moved.grid
        without = draw(DRAWS, deviation, bytes(range(32)), "without")
        with_client = draw(DRAWS, deviation, bytes(range(32)), "with") + int(moved.integers[0])
        found = lower_bound(without, with_client, deviation, DELTA)
        assert (found < claimed) == holds, (found, claimed)
        assert found > 0.5 * claimed  # the attack is a real one


def test_a_release_is_repeated_after_a_crash_and_has_the_noise_that_was_charged(tmp_path):
    rows = [0.01 * x.astype(np.float32) for x in np.random.default_rng(0).normal(size=(10, 4000))]
    mean = Central(clip=1.0, noise_multiplier=1.5, expected_clients=10, adaptive=AdaptiveClip(count_noise=3.0))

    def budget():
        settings = {"noise_multiplier": 1.5, "dimension": mean.dimension(rows[0])}
        return Budget(tmp_path / "budget", 20.0, DELTA, sealing_key=bytes(32), **settings)

    first = mean.release(rows, budget().reserve(mean.inputs_digest(rows)))
    again = mean.release(rows[::-1], budget().reserve(mean.inputs_digest(rows[::-1])))
    assert np.array_equal(first.mean, again.mean)
    assert first.public == again.public
    assert first.next == again.next
    other = mean.release(rows[1:], budget().reserve(mean.inputs_digest(rows[1:])))
    assert [charge.rounds for charge in budget().charges] == [1, 1]
    noise = first.mean - np.mean(rows, axis=0, dtype=np.float64)
    assert noise.std() == pytest.approx(first.public["noise_of_mean"], rel=0.06)
    assert abs(np.corrcoef(noise, other.mean - np.sum(rows[1:], axis=0, dtype=np.float64) / 10)[0, 1]) < 0.08
