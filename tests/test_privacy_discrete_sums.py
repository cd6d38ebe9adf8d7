"""Sums of discrete Gaussians: what they are said to cost against what they do, by term and by divergence."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import PrivacyError
from fedcore.privacy import accountant
from fedcore.privacy.accountant import EXPOSED, Charge, spent
from fedcore.privacy.discrete_sums import charge_of_sum, concentrated, tau
from fedcore.privacy.secagg.search import SECURITY

pytest.importorskip("dp_accounting", reason="accounting needs dp-accounting, of the extra `train`")


def rho_of_a_shift(sigma: float, clients: int, by: int) -> float:
    """sup over α of D_α / α between the sum of n discrete Gaussians and the same moved by an integer: Bun and Steinke's
    ρ, from the sum's own probabilities."""
    k = np.arange(-60, 61)
    one = np.exp(-(k**2) / 2 / sigma**2)
    one /= one.sum()
    total = one
    for _ in range(clients - 1):
        total = np.convolve(total, one)
    p, q = total[by:], total[:-by]
    held = (p > 1e-250) & (q > 1e-250)
    p, q = np.log(p[held]), np.log(q[held])
    alphas = (1.01, 1.1, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
    return max(np.logaddexp.reduce(a * p + (1 - a) * q) / (a - 1) / a for a in alphas)


@pytest.mark.parametrize("sigma", [0.5, 0.55, 0.6, 0.7, 0.85, 1.0])
@pytest.mark.parametrize("clients", [2, 3, 5, 10])
def test_no_change_tells_more_than_it_is_charged(sigma, clients):
    """In one coordinate and in all of D at once, where divergences of independent coordinates add up."""
    for by in (1, 2, 4):
        exact = rho_of_a_shift(sigma, clients, by)
        assert exact >= (1 - 1e-3) * by**2 / (2 * clients * sigma**2) * (sigma >= 0.85)
        for dimension in (1, 9, 100):
            assert exact <= concentrated(sigma, clients, by, dimension)
            assert dimension * exact <= concentrated(sigma, clients, by * math.sqrt(dimension), dimension)


@pytest.mark.parametrize(
    ("sigma", "clients", "norm", "dimension", "least"),
    [(0.8, 5, 1.0, 1000, 1), (0.6, 4, 2.0, 100, 1), (0.8, 5, 30.0, 16, 0), (0.5, 3, 64.0, 1, 0)],
)
def test_the_charge_is_the_least_of_three_bounds(sigma, clients, norm, dimension, least):
    """Theorem 1 of Kairouz, Liu and Steinke, with ‖x‖₁ <= min(√D ‖x‖₂, ‖x‖₂²) of whole numbers, in plain sums."""
    far = 10 * sum(math.exp(-2 * math.pi**2 * sigma**2 * k / (k + 1)) for k in range(1, clients))
    assert tau(sigma, clients) == pytest.approx(far, rel=1e-12)
    variance = clients * sigma**2
    l1 = min(math.sqrt(dimension) * norm, norm**2)
    bounds = [
        norm**2 / variance + 2 * far * dimension,
        norm**2 / variance + 2 * far * l1 / math.sqrt(variance) + far**2 * dimension,
        (norm / math.sqrt(variance) + far * math.sqrt(dimension)) ** 2,
    ]
    assert bounds[1 - least] > 1.001 * bounds[least]
    assert bounds[2] >= (1 - 1e-12) * bounds[least]
    assert concentrated(sigma, clients, norm, dimension) == pytest.approx(bounds[least] / 2, rel=1e-12)


def test_a_sum_is_charged_for_the_samples_of_all_its_clients():
    assert charge_of_sum(5.0, 7, 10.0, 1000).dimension == 7000
    assert charge_of_sum(5.0, 7, 10.0, 1000, rounds=3).distance == 3 * 7000 * 2.0**-accountant.BITS


def test_noise_near_the_analysed_one_costs_both_of_its_terms():
    """(1 + e^ε) η, where ε is so small that both are half of it."""
    delta, charge = 1e-5, Charge(20.0, dimension=int(0.2e-5 * 2**accountant.BITS))
    found = spent([charge], delta, "none", "add_remove")
    mu = 1 / 20

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    own = phi(mu / 2 - found / mu) - math.exp(found) * phi(-mu / 2 - found / mu)
    assert 0.99 * delta < own + (1 + math.exp(found)) * charge.distance <= delta


def test_masks_that_fail_take_their_chance_from_delta_each_round(monkeypatch):
    """2^-40 a round, whatever the data are, so that no e^ε is on it; the noise of a server has no masks."""
    assert EXPOSED == 2.0**SECURITY
    masked = Charge(5.0, rounds=1000, concentrated=True)
    assert (masked.exposed, replace(masked, concentrated=False).exposed) == (1000 * 2.0**-40, 0)
    parts = [replace(masked, rounds=300), replace(masked, rounds=700)]
    found = spent([masked], 1e-8, "none", "add_remove")
    assert found == pytest.approx(spent(parts, 1e-8, "none", "add_remove"), rel=1e-9)
    assert spent([masked], 1000 * 2.0**-40, "none", "add_remove") == math.inf
    with pytest.raises(PrivacyError, match=r"delta 9e-10, which no noise reaches; raise either"):
        fc.privacy.noise_multiplier(epsilon=8, delta=9e-10, rounds=1000, sampling="none", concentrated=True)
    monkeypatch.setattr(accountant, "EXPOSED", 0.0)
    assert found == pytest.approx(spent([masked], 1e-8 - 1000 * 2.0**-40, "none", "add_remove"), rel=1e-9)
    assert found > 1.001 * spent([masked], 1e-8, "none", "add_remove")
