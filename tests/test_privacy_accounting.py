"""ε and noise multipliers against published and recomputed answers, under both neighbour relations."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import DependencyError, PrivacyError
from fedcore.privacy.accountant import BITS, Charge, spent
from fedcore.privacy.discrete_sums import concentrated, tau

pytest.importorskip("dp_accounting", reason="accounting needs dp-accounting, of the extra `train`")

#: (sampling rate, noise multiplier, rounds) -> ε at δ = 1e-5 by privacy loss distributions of dp-accounting 0.6.0
POISSON = {
    (0.01, 4, 10000): 0.9470,
    (256 / 60000, 1.1, 14040): 2.3796,
    (0.02, 1, 100): 1.4273,
    (1.0, 1, 1): 4.37718,
}


def balle_wang_delta(mu: float, epsilon: float) -> float:
    """δ = Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ): Balle and Wang 2018, arXiv 1805.06530, Theorem 8, in their own symbols."""

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    return phi(mu / 2 - epsilon / mu) - math.exp(epsilon) * phi(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize(("plan", "known"), POISSON.items())
def test_known_answers_of_poisson_samples(plan, known):
    q, z, rounds = plan
    got = fc.privacy.epsilon(noise_multiplier=z, sampling_rate=q, rounds=rounds, delta=1e-5)
    assert got == pytest.approx(known, abs=5.1e-5)


@pytest.mark.parametrize(
    ("plan", "known"), [((0.01, 4, 10000), 1.0355), ((256 / 60000, 1.1, 14040), 2.5944), ((0.02, 1, 100), 1.8435)]
)
def test_privacy_loss_distributions_are_below_known_answers_of_renyi_accounting(plan, known):
    import dp_accounting

    q, z, rounds = plan
    event = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(z))
    renyi = dp_accounting.rdp.RdpAccountant().compose(event, rounds).get_epsilon(1e-5)
    assert renyi == pytest.approx(known, abs=5.1e-5)
    ours = fc.privacy.epsilon(noise_multiplier=z, sampling_rate=q, rounds=rounds, delta=1e-5)
    assert 0.75 * renyi < ours < renyi


def wang_balle_kasiviswanathan(q: float, sigma: float, rounds: int, delta: float) -> float:
    """ε of samples of a fixed size: Wang, Balle and Kasiviswanathan 2019, arXiv 1808.00087, Theorem 27, term by term.

    sigma is of noise relative to how far a replaced record moves the sum; Canonne, Kamath and Steinke 2020, arXiv
    2004.00010, Proposition 12, turns divergences of whole orders into ε.
    """

    def log_term(order: int, j: int) -> float:
        rho = j / (2 * sigma**2)
        two = min(math.log(4 * math.expm1(rho)), rho + math.log(2))
        return math.log(math.comb(order, j)) + j * math.log(q) + (two if j == 2 else (j - 1) * rho + math.log(2))

    found = math.inf
    for order in range(2, 64):
        log_total = np.logaddexp.reduce([0.0, *(log_term(order, j) for j in range(2, order + 1))])
        divergence = rounds * float(log_total) / (order - 1)
        found = min(found, divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))
    return found


def test_fixed_size_samples_take_noise_relative_to_twice_the_clip():
    plan = {"noise_multiplier": 1.1, "sampling_rate": 0.01, "rounds": 100, "delta": 1e-5}
    fixed = fc.privacy.epsilon(**plan, sampling="fixed", neighbours="replace_one", population=10_000)
    assert fixed == pytest.approx(7.570, abs=5.1e-4)
    assert wang_balle_kasiviswanathan(0.01, 1.1 / 2, 100, 1e-5) == pytest.approx(fixed, rel=1e-4)
    # with z itself for the noise: six times too little
    assert wang_balle_kasiviswanathan(0.01, 1.1, 100, 1e-5) == pytest.approx(1.192, abs=5.1e-4)
    assert fc.privacy.epsilon(**plan) == pytest.approx(0.550, abs=5.1e-4)


@pytest.mark.parametrize(("q", "z", "rounds"), [(0.001, 1.5, 1000), (0.05, 4.0, 50), (0.02, 2.5, 300)])
def test_fixed_size_samples_against_the_theorem(q, z, rounds):
    got = fc.privacy.epsilon(
        noise_multiplier=z, sampling_rate=q, rounds=rounds, delta=1e-6, sampling="fixed", neighbours="replace_one"
    )
    # dp-accounting tries orders between whole ones, and bounds higher terms by the paper's forward differences
    known = wang_balle_kasiviswanathan(q, z / 2, rounds, 1e-6)
    assert 0.85 * known < got <= known * (1 + 1e-9)


@pytest.mark.parametrize("shift", [1, 2])
@pytest.mark.parametrize(("z", "rounds"), [(1.0, 1), (3.0, 40), (30.0, 1)])
def test_unsampled_rounds_are_one_gaussian_of_balle_and_wang(shift, z, rounds):
    relation = "replace_one" if shift == 2 else "add_remove"
    for sampling in ("none", "poisson"):
        got = fc.privacy.epsilon(noise_multiplier=z, rounds=rounds, delta=1e-6, sampling=sampling, neighbours=relation)
        assert balle_wang_delta(shift * math.sqrt(rounds) / z, got) == pytest.approx(1e-6, rel=1e-6)


def hockey_stick(q: float, z: float, epsilon: float, u: np.ndarray, v: np.ndarray) -> float:
    """δ of one Poisson-sampled round at ε for a record whose clipped term is u, or v once replaced, in two dimensions.

    ∫ max(P - e^ε Q, 0) on a grid, P = (1 - q) N(0, z²) + q N(u, z²) and Q with v.
    """
    axis = np.linspace(-9 * z, 9 * z, 181)
    x, y = np.meshgrid(axis, axis)

    def density(at: np.ndarray) -> np.ndarray:
        return np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * z * z)) / (2 * math.pi * z * z)

    p, other = ((1 - q) * density(np.zeros(2)) + q * density(w) for w in (u, v))
    return float(np.maximum(p - math.exp(epsilon) * other, 0).sum() * (axis[1] - axis[0]) ** 2)


def test_a_replaced_record_tells_most_with_opposite_terms_on_the_clip():
    """What dp-accounting takes as the worst pair under replace_one is: no u and v of a grid tell more."""
    epsilon, q, z, e = 0.6, 0.3, 0.8, np.array([1.0, 0.0])
    worst = hockey_stick(q, z, epsilon, e, -e)
    for angle in (0.0, 1.0, 2.0, 3.0):
        for long, other in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5)):
            turned = other * np.array([math.cos(angle), math.sin(angle)])
            assert hockey_stick(q, z, epsilon, long * e, turned) <= worst + 1e-9
    charge = [Charge(z, q)]
    assert spent(charge, worst, "poisson", "replace_one") == pytest.approx(epsilon, abs=2e-3)
    assert spent(charge, worst, "poisson", "add_remove") < epsilon - 0.1


@pytest.mark.parametrize(
    "plan",
    [
        {"epsilon": 8, "rounds": 100},
        {"epsilon": 2, "rounds": 20, "sampling_rate": 0.1},
        {"epsilon": 0.5, "sampling": "none", "neighbours": "replace_one"},
    ],
)
def test_noise_multiplier_inverts_epsilon_from_below(plan):
    z = fc.privacy.noise_multiplier(**plan, delta=1e-5)
    target = plan.pop("epsilon")
    got = fc.privacy.epsilon(**plan, noise_multiplier=z, delta=1e-5)
    assert 0.9999 * target <= got <= target


def test_charges_compose_whatever_their_order_and_grouping():
    parts = [Charge(2.0, 0.05, 10), Charge(1.5, 1.0, 2), Charge(2.0, 0.05, 5)]
    whole = spent([Charge(1.5, 1.0, 2), Charge(2.0, 0.05, 15)], 1e-5, "poisson", "add_remove")
    assert spent(parts, 1e-5, "poisson", "add_remove") == whole > spent(parts[:2], 1e-5, "poisson", "add_remove")
    assert spent([], 1e-5, "poisson", "add_remove") == 0


def test_charges_whose_noise_is_close_to_ideal_add_up_in_any_order():
    near, ideal = Charge(1.0, dimension=2**72), Charge(2.0)
    found = {spent(charges, 1e-5, "none", "add_remove") for charges in ([near, ideal], [ideal, near])}
    assert len(found) == 1
    assert found.pop() > spent([Charge(1.0), ideal], 1e-5, "none", "add_remove") * (1 + 1e-9)


def test_noise_that_is_close_to_ideal_costs_part_of_delta():
    plan = {"noise_multiplier": 1.0, "delta": 1e-5, "rounds": 4}
    ideal = fc.privacy.epsilon(**plan)
    samples = 2**64
    got = fc.privacy.epsilon(**plan, dimension=samples)
    assert got > ideal
    left = 1e-5 - (1 + math.exp(got)) * samples * 4 * 2.0**-BITS
    assert 0.99 * left < balle_wang_delta(2.0, got) <= left < 0.9e-5
    assert fc.privacy.epsilon(**plan, dimension=2**90) == math.inf


def test_sums_of_discrete_gaussians_cost_a_little_more_than_one_gaussian():
    """Of few clients at small σ the distance τ dominates; with σ of a few steps the sum is as good as a Gaussian."""
    assert tau(0.5, 3) == pytest.approx(10 * (math.exp(-(math.pi**2) / 4) + math.exp(-(math.pi**2) / 3)))
    assert tau(2.0, 1) == 0
    assert concentrated(4.0, 25, 10.0, 1000) == pytest.approx(0.5 * (10 / 20) ** 2, rel=1e-12)
    plan = {"clients": 25, "dimension": 1000, "delta": 1e-5, "rounds": 3}
    fine = fc.privacy.distributed_epsilon(sigma=4.0, norm=10.0, **plan)
    gaussian = fc.privacy.epsilon(noise_multiplier=2.0, rounds=3, delta=1e-5)
    assert gaussian < fine < 1.12 * gaussian  # zCDP loses a little against the exact ε
    assert fc.privacy.distributed_epsilon(sigma=0.6, norm=1.5, **plan) > 1.2 * fine
    assert fc.privacy.distributed_epsilon(sigma=8.0, norm=10.0, neighbours="replace_one", **plan) == pytest.approx(fine)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"noise_multiplier": 0}, "noise_multiplier: got 0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier: got nan"),
        ({"sampling_rate": 0}, "sampling_rate: got 0"),
        ({"sampling_rate": 1.5}, "sampling_rate: got 1.5"),
        ({"rounds": 0}, "rounds: got 0"),
        ({"rounds": 2.5}, "rounds: got 2.5"),
        ({"delta": 0}, "delta: got 0"),
        ({"delta": 1.0}, "delta: got 1.0"),
        ({"delta": 1e-3, "population": 1000}, "delta: got 0.001 for a population of 1000"),
        ({"sampling": "shuffled"}, "sampling: got 'shuffled'"),
        ({"neighbours": "all"}, "neighbours: got 'all'"),
        ({"sampling": "fixed"}, "neighbours: got 'add_remove' with sampling 'fixed'"),
        ({"sampling": "none", "sampling_rate": 0.1}, "sampling_rate: got 0.1 with sampling 'none'"),
        (
            {"sampling": "fixed", "neighbours": "replace_one", "sampling_rate": 0.015, "population": 100},
            "sampling_rate: got 0.015 of a population of 100, which is 1.5 records",
        ),
    ],
)
def test_bad_parameters_are_named(changed, named):
    with pytest.raises(PrivacyError) as caught:
        fc.privacy.epsilon(**({"noise_multiplier": 1.0, "delta": 1e-5} | changed))
    assert str(caught.value).startswith(named)


@pytest.mark.parametrize("epsilon", [0, -1, math.inf, math.nan, True])
def test_bad_epsilon_is_named(epsilon):
    with pytest.raises(PrivacyError, match="epsilon: got"):
        fc.privacy.noise_multiplier(epsilon=epsilon, delta=1e-5)


def test_missing_accounting_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(DependencyError, match=r"install fedcore\[train\]"):
        fc.privacy.epsilon(noise_multiplier=1.2345, delta=1e-5)


def test_the_stream_of_aes_adds_its_own_term_to_delta():
    """n blocks of a permutation are within n²/2^129 of a function's; a sample rests on 17 blocks of its own at most."""
    plain, aes = Charge(20.0, rounds=3, dimension=10**9), Charge(20.0, rounds=3, dimension=10**9, stream="aes256ctr")
    assert plain.distance == 3 * 10**9 * 2.0**-BITS
    assert aes.distance - plain.distance == pytest.approx(3 * (17 * 10**9) ** 2 / 2**129, rel=1e-6, abs=0)
    assert spent([aes], 1e-16, "none", "add_remove") > spent([plain], 1e-16, "none", "add_remove")
    with pytest.raises(PrivacyError, match="stream: got 'rc4'"):
        Charge(1.0, stream="rc4")
