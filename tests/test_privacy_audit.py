"""Whole releases with the real kernels: what an attacker can tell of one client, and what a crash repeats."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from oracles.privacy_audits import AUDITS

import fedcore as fc
from fedcore.errors import PrivacyError
from fedcore.privacy import AdaptiveClip, Budget, Central
from fedcore.privacy.audit import guesses, neighbours_epsilon, one_run_epsilon
from fedcore.privacy.noise import draw

pytest.importorskip("dp_accounting", reason="the claimed ε needs dp-accounting, of the extra `train`")
pytest.importorskip("fedcore.ops.discrete_gaussian", reason="this build has no discrete_gaussian")
clip_round = pytest.importorskip("fedcore.ops.clip_round", reason="this build has no clip_round")

DRAWS, DELTA = 1 << 20, 1e-5


@pytest.mark.parametrize("mode", AUDITS)
def test_an_audit_finds_less_than_the_claimed_epsilon_and_more_where_noise_is_halved(mode):
    """Each mechanism's own releases on two neighbouring inputs, as many times as they have numbers."""
    audit, draws = AUDITS[mode], DRAWS if mode in ("central", "local") else DRAWS >> 2
    claimed = audit.claimed(audit.z, draws)
    found, halved = (audit.bound(share, draws, bytes(range(32))) for share in (1.0, 0.5))
    assert found < claimed < halved
    assert found > 0.45 * claimed  # the attack is a real one


def test_one_run_with_canaries_finds_less_than_the_claimed_epsilon_and_more_where_noise_is_halved():
    """A client for each number of the sum, whose whole clip lies there: each in by a fair coin, then guessed."""
    m, delta, moved = 1 << 16, 1e-6, clip_round.clip_round(np.array([1.0], np.float32), 1.0)
    claimed = fc.privacy.epsilon(noise_multiplier=1.0, delta=delta)
    there = np.random.default_rng(0).integers(0, 2, m).astype(bool)
    for share, holds in ((1.0, True), (0.5, False)):
        total = draw(m, share / moved.grid, bytes(range(32)), "canaries") + there * int(moved.integers[0])
        guessed = guesses(total, 4096)
        correct = np.count_nonzero(guessed == np.where(there, 1, -1))
        found = one_run_epsilon(m, 4096, correct, delta)
        assert (found < claimed) == holds, (found, claimed)
        assert found > 0.4 * claimed  # the attack is a real one


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"delta": -0.1}, "delta: got -0.1, expected at least 0 and below 1"),
        ({"delta": math.nan}, "delta: got nan"),
        ({"delta": "1e-5"}, "delta: got '1e-5'"),
        ({"delta": 1.0}, "delta: got 1.0"),
        ({"confidence": 1.0}, "confidence: got 1.0, expected above 0 and below 1"),
        ({"confidence": 0}, "confidence: got 0"),
        ({"thresholds": []}, "thresholds: got none, expected at least one"),
        ({"thresholds": [0.0, math.nan]}, "thresholds: got NaN"),
        ({"without": []}, "without: got none, expected at least one output"),
        ({"present": []}, "present: got none, expected at least one output"),
        ({"without": [0.0, math.nan]}, "without: got NaN, expected numbers that thresholds can be held against"),
        ({"present": [[1.0]]}, r"present: got shape \(1, 1\), expected \(n,\)"),
    ],
)
def test_a_bound_from_neighbours_refuses_what_it_cannot_count(changed, named):
    given = {"without": np.zeros(100), "present": np.ones(100), "thresholds": [0.5], "delta": 1e-5} | changed
    given |= {name: np.array(given[name], np.float64) for name in ("without", "present")}
    with pytest.raises(PrivacyError, match=f"^{named}"):
        neighbours_epsilon(**given)
    if "delta" in changed or "confidence" in changed:
        with pytest.raises(PrivacyError, match=f"^{named}"):
            one_run_epsilon(9, 4, 4, **({"delta": 0.0} | changed))


def test_a_bound_from_neighbours_is_that_of_its_rates():
    share, n = math.log(2 / 0.001), 1000
    caught = 1 - math.sqrt(2 * share / n) - share / (3 * n)
    found = neighbours_epsilon(np.zeros(n), np.ones(n), [0.5], 1e-5)
    assert found == pytest.approx(math.log((caught - 1e-5) / (2 * share / n)))
    assert neighbours_epsilon(np.ones(n), np.ones(n), [0.5], 1e-5) == 0


def test_the_one_run_bound_is_that_of_the_paper():
    """Its p-value at the bound, term by term in exact binomials; and of randomised response it is seldom too high."""

    def p_value(m, r, v, epsilon, delta):
        q = 1 / (1 + math.exp(-epsilon))
        chance = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
        alpha = max((sum(chance[v - i : v]) / i for i in range(1, v + 1)), default=0)
        return sum(chance[v:]) + 2 * m * delta * alpha

    for m, r, v, delta in ((100, 50, 45, 0.0), (100, 100, 80, 1e-4), (1000, 60, 60, 1e-5)):
        found = one_run_epsilon(m, r, v, delta, 0.9)
        assert p_value(m, r, v, found, delta) == pytest.approx(0.1, rel=1e-4)
    assert one_run_epsilon(100, 100, 50, 0.0) == 0
    coin = random.Random(0)
    q = 1 / (1 + math.exp(-2.0))
    above = sum(one_run_epsilon(200, 200, sum(coin.random() < q for _ in range(200)), 0.0) > 2.0 for _ in range(300))
    assert 0 < above <= 0.05 * 300 + 3 * math.sqrt(0.05 * 300)
    assert guesses(np.array([3.0, 1.0, 2.0, 0.0]), 3).tolist() == [1, 0, 1, -1]
    with pytest.raises(PrivacyError, match="guesses: got 5 correct of 4 of 9 canaries"):
        one_run_epsilon(9, 4, 5, 0.0)
    with pytest.raises(PrivacyError, match="count: got 5 guesses of 4 scores"):
        guesses(np.zeros(4), 5)


def test_a_release_is_repeated_after_a_crash_and_has_the_noise_that_was_charged(tmp_path):
    rows = [0.01 * x.astype(np.float32) for x in np.random.default_rng(0).normal(size=(10, 4000))]
    mean = Central(clip=1.0, noise_multiplier=1.5, expected_clients=10, adaptive=AdaptiveClip(count_noise=3.0))

    def budget():
        settings = {"noise_multiplier": 1.5, "dimension": mean.dimension(rows[0])}
        return Budget(tmp_path / "budget", 20.0, DELTA, sealing_key=bytes(32), **settings)

    first = mean.release(rows, budget().reserve(mean.inputs_digest(rows, label="a round")), label="a round")
    again = mean.release(rows[::-1], budget().reserve(mean.inputs_digest(rows[::-1], label="a round")), label="a round")
    assert np.array_equal(first.mean, again.mean)
    assert first.public == again.public
    assert first.next == again.next
    other = mean.release(rows[1:], budget().reserve(mean.inputs_digest(rows[1:], label="a round")), label="a round")
    # another round of the same inputs shares no noise with this one
    named = {"label": "another round"}
    later = mean.release(rows, budget().reserve(mean.inputs_digest(rows, **named)), **named)
    assert not np.array_equal(first.mean, later.mean)
    assert [charge.rounds for charge in budget().charges] == [1, 1, 1]
    noise = first.mean - np.mean(rows, axis=0, dtype=np.float64)
    assert noise.std() == pytest.approx(first.public["noise_of_mean"], rel=0.06)
    assert abs(np.corrcoef(noise, other.mean - np.sum(rows[1:], axis=0, dtype=np.float64) / 10)[0, 1]) < 0.08
