"""Accounting at its edges: numbers that no plan has, next to no noise, and a search that ends."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import PrivacyError
from fedcore.privacy.accountant import INTERVAL, LITTLE, Charge, spent
from fedcore.privacy.discrete_sums import charge_of_sum, tau

pytest.importorskip("dp_accounting", reason="accounting needs dp-accounting, of the extra `train`")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"noise_multiplier": 1e200}, "noise_multiplier: got 1e+200, expected a number from 3.81e-06 to 2e+07"),
        ({"noise_multiplier": 1e-200}, "noise_multiplier: got 1e-200"),
        ({"rounds": 10**400}, "rounds: got an integer of 1329 bits, expected a whole number from 1 to 2^53"),
        (
            {"rounds": 2**53, "sampling_rate": 0.5},
            "rounds: got 9007199254740992, expected a whole number from 1 to 10000000",
        ),
        ({"dimension": 10**400}, "dimension: got an integer of 1329 bits"),
        ({"population": -3}, "population: got -3, expected a whole number from 1 to 2^53"),
        ({"population": 2.5}, "population: got 2.5"),
        ({"population": "x"}, "population: got 'x'"),
    ],
)
def test_numbers_that_no_plan_has_are_refused_by_name(changed, named):
    with pytest.raises(PrivacyError) as caught:
        fc.privacy.epsilon(**({"noise_multiplier": 1.0, "delta": 1e-5} | changed))
    assert str(caught.value).startswith(named)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"sigma": 1e200}, "sigma: got 1e+200, expected 0.5 to 1e+09 steps"),
        ({"norm": 1e200}, "norm: got 1e+200"),
        ({"norm": 2.0**50, "sigma": 0.5}, "sigma over norm: noise multiplier of the sum: got"),
    ],
)
def test_sums_that_no_plan_has_are_refused_by_name(changed, named):
    with pytest.raises(PrivacyError) as caught:
        fc.privacy.distributed_epsilon(
            **({"sigma": 2.0, "clients": 2, "norm": 1, "dimension": 1, "delta": 1e-5} | changed)
        )
    assert str(caught.value).startswith(named)


def test_sums_of_much_noise_or_many_clients_cost_what_fewer_do_at_most():
    sums = {"norm": 1, "dimension": 1, "delta": 1e-5}
    assert 0 <= fc.privacy.distributed_epsilon(sigma=1e9, clients=2, **sums) < 1e-3
    assert charge_of_sum(1e9, 2, 1, 1).noise_multiplier == 2e7
    assert 0 <= fc.privacy.distributed_epsilon(sigma=2.0, clients=2**53, **sums) < 1e-3
    for clients in (2**16, 2**16 + 5):
        k = np.arange(1, clients)
        whole = 10 * np.exp(-2 * (0.5 * np.pi) ** 2 * k / (k + 1)).sum()
        assert whole * (1 - 1e-12) <= tau(0.5, clients) <= whole * (1 + 1e-9)


@pytest.mark.parametrize(
    ("plan", "known"), [((0.1, 0.01, 1), 75.42735), ((0.1, 0.01, 100), 354.19619), ((0.03, 0.01, 1), 653.00206)]
)
def test_little_noise_on_samples_is_accounted_in_wider_steps_to_as_many_digits(plan, known, monkeypatch):
    """Known: losses in steps that are 10 and more times narrower."""
    z, q, rounds = plan
    import dp_accounting

    steps, real = [], dp_accounting.pld.PLDAccountant

    def accountant(*arguments, value_discretization_interval):
        steps.append(value_discretization_interval)
        return real(*arguments, value_discretization_interval=value_discretization_interval)

    monkeypatch.setattr(dp_accounting.pld, "PLDAccountant", accountant)
    found = spent([Charge(z, q, rounds)], 1e-5, "poisson", "add_remove", 10 * INTERVAL)
    # what memory and time go by: 10⁵ steps, a tenth of them where each is asked to be ten times as wide
    assert (0.5 / z**2 + 8 / z) / steps[0] <= 1e4 * (1 + 1e-9)
    assert known * (1 - 1e-6) < found < known * (1 + 1e-4)


@pytest.mark.parametrize("neighbours", ["add_remove", "replace_one"])
def test_beside_next_to_no_noise_every_sample_counts_as_the_whole(neighbours):
    """One release of so much is enough: distributions of its losses would be of 10⁸ wide."""
    sampled = [Charge(0.5 * LITTLE, 0.3), Charge(1.0, 0.01, 20)]
    whole = [Charge(0.5 * LITTLE), Charge(1.0, rounds=20)]
    found = spent(sampled, 1e-5, "poisson", neighbours)
    assert found == spent(whole, 1e-5, "none", neighbours) > spent(whole[1:], 1e-5, "none", neighbours)


def test_the_ends_of_what_is_accounted_have_an_epsilon():
    for z in (2.0**-18, 2e7):
        for sampling, neighbours, q in (
            ("poisson", "add_remove", 0.01),
            ("none", "add_remove", 1.0),
            ("fixed", "replace_one", 0.01),
        ):
            found = spent([Charge(z, q, 3)], 1e-5, sampling, neighbours)
            assert 0 <= found < 1e-3 if z > 1 else 1e10 < found < math.inf


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_a_search_for_noise_ends_at_what_is_accounted():
    with pytest.raises(PrivacyError, match=r"which noise multiplier 3\.8e-06 keeps: that hides nobody"):
        fc.privacy.noise_multiplier(epsilon=1e12, delta=1e-5)
    with pytest.raises(PrivacyError, match="which no noise reaches"):
        fc.privacy.noise_multiplier(epsilon=1e-9, delta=1e-12, rounds=10**6)
