"""ε where each client adds its own discrete Gaussian: the sum of discrete Gaussians is not one, but close to it.

Kairouz, Liu and Steinke 2021, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation", ICML, arXiv 2102.06387: Theorem 1 and Proposition 14.
"""

from __future__ import annotations

import math

import numpy as np

from fedcore.errors import PrivacyError
from fedcore.gaussian_table import MOST
from fedcore.numbers import as_real, got
from fedcore.privacy.accountant import Charge, check_delta, check_relation, spent
from fedcore.privacy.limits import MOST_MULTIPLIER, check_multiplier, check_whole

#: of a change, in grid steps: integers of more are of no 32-bit modulus, in any number of coordinates
_MOST_NORM = 2.0**52
#: terms of τ that are added up one by one
_TERMS = 1 << 16


def tau(sigma: float, clients: int) -> float:
    """τ = 10 Σ_{k=1}^{n-1} exp(-2π² σ² k/(k+1)): how far the sum of n discrete Gaussians of σ >= ½ is from one."""
    k = np.arange(1, min(clients, _TERMS), dtype=np.float64)
    each = np.exp(-2 * (math.pi * sigma) ** 2 * k / (k + 1))
    return float(10 * (each.sum() + max(clients - _TERMS, 0) * each[-1:].sum()))  # later ones are smaller


def concentrated(sigma: float, clients: int, norm: float, dimension: int) -> float:
    """ρ of ρ-zCDP for the sum of n clients' noise against a change of an integer vector by at most `norm`.

    ρ = ½ min(m² + 2τD, m² + 2 m₁ τ + τ² D, (m + τ√D)²) with m = norm/(√n σ) and m₁ = ‖change‖₁/(√n σ), where
    ‖x‖₁ <= ‖x‖₂² for an integer vector; ‖x‖₁ <= √D ‖x‖₂ is in the third bound. The paper's first term is m² + τD/2 at
    best; this one is larger.
    """
    scale, far = math.sqrt(clients) * sigma, tau(sigma, clients)
    m = norm / scale
    m1 = norm**2 / scale
    return 0.5 * min(
        m**2 + 2 * far * dimension, m**2 + 2 * m1 * far + far**2 * dimension, (m + far * math.sqrt(dimension)) ** 2
    )


def distributed_epsilon(
    *,
    sigma: float,
    clients: int,
    norm: float,
    dimension: int,
    rounds: int = 1,
    delta: float,
    neighbours: str = "add_remove",
    population: int | None = None,
) -> float:
    """ε at δ of `rounds` sums to which each client adds discrete Gaussian noise; inf where δ is less than what samplers
    and masks take.

    sigma      standard deviation of one client's noise, in grid steps, at least ½
    clients    the fewest honest clients whose noise is in a sum: fewest included less those that may collude
    norm       bound on a client's integer vector, in grid steps; replaced records move the sum by twice that
    dimension  coordinates of the vector

    Nothing is sampled here: whoever runs the masked sum sees who takes part. Composed by ρ-zCDP, and with 2^-40 of δ a
    round for masks that fail, as `spent` says.
    Raises PrivacyError naming the parameter, DependencyError.
    """
    check_delta(delta, population)
    check_relation("none", neighbours)
    clients, dimension = check_whole("clients", clients), check_whole("dimension", dimension)
    steps, bound = as_real(sigma), as_real(norm)
    if steps is None or not 0.5 <= steps <= MOST:
        raise PrivacyError(f"{got('sigma', sigma)}, expected 0.5 to {float(MOST):g} steps of a grid; change the grid")
    if bound is None or not 0 < bound <= _MOST_NORM:
        raise PrivacyError(f"{got('norm', norm)}, expected a bound in grid steps above 0, at most {_MOST_NORM:g}")
    return spent([charge_of_sum(steps, clients, bound, dimension, rounds, neighbours)], delta, "none", neighbours)


def charge_of_sum(
    sigma: float,
    clients: int,
    norm: float,
    dimension: int,
    rounds: int = 1,
    neighbours: str = "add_remove",
    stream: str = "chacha20",
) -> Charge:
    """What `rounds` such sums cost, with the parameters of `distributed_epsilon`: the Gaussian of the same ρ-zCDP."""
    change = 2.0 if neighbours == "replace_one" else 1.0
    z = change / math.sqrt(2 * concentrated(sigma, clients, change * norm, dimension))
    z = min(z, MOST_MULTIPLIER)  # less noise than there is costs more
    check_multiplier(z, "sigma over norm: noise multiplier of the sum")
    return Charge(z, rounds=rounds, dimension=dimension * clients, concentrated=True, stream=stream)
