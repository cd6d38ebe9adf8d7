"""ε for a plan of rounds, and the noise that a plan needs.

Sampling is what hides who took part, so it counts only where it is random and nobody sees it: not towards a server
that picks or knows the clients, and a dropout is no sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fedcore.errors import PrivacyBudgetError, PrivacyError
from fedcore.numbers import as_real, got, shown
from fedcore.privacy.accountant import INTERVAL, Charge, check_delta, check_relation, dp_accounting, spent
from fedcore.privacy.limits import LEAST_MULTIPLIER, MOST_EPSILON, MOST_MULTIPLIER

#: how far below the wanted ε, relative to it, the noise that is looked for may end
_PRECISION = 1e-4


def epsilon(
    *,
    noise_multiplier: float,
    sampling_rate: float = 1.0,
    rounds: int = 1,
    delta: float,
    sampling: str = "poisson",
    neighbours: str = "add_remove",
    population: int | None = None,
    dimension: int = 0,
    stream: str = "chacha20",
) -> float:
    """ε at δ of `rounds` noisy sums of terms clipped to C; inf where δ is less than what samplers and masks take.

    noise_multiplier  standard deviation of the noise over C, under both relations
    sampling_rate     probability that a record is in a round (poisson), or the sample's share of the population (fixed)
    sampling          "poisson": each record by its own coin, unseen; "fixed": an unseen sample of one size without
                      replacement; "none": rate 1, whoever took part
    neighbours        "add_remove": one record more or less; "replace_one": one record changed, at sensitivity 2C
    population        records in all; δ must be less than 1 over it
    dimension         noise samples a round, whose distance from the ideal noise is part of δ; 0 for ideal noise
    stream            that they are drawn from: AES in counter mode adds its own distance

    How each is computed, with its sources: `fedcore.privacy.accountant.spent`. Raises PrivacyError naming the
    parameter, DependencyError without dp-accounting.
    """
    charge = Charge(noise_multiplier, sampling_rate, rounds, dimension, stream=stream)
    _check(charge, delta, sampling, neighbours, population)
    return spent([charge], delta, sampling, neighbours)


def noise_multiplier(
    *,
    epsilon: float,
    sampling_rate: float = 1.0,
    rounds: int = 1,
    delta: float,
    sampling: str = "poisson",
    neighbours: str = "add_remove",
    population: int | None = None,
    dimension: int = 0,
    before: Sequence[Charge] = (),
    concentrated: bool = False,
    stream: str = "chacha20",
) -> float:
    """The least noise multiplier whose ε at δ is at most `epsilon`, and at least 0.9999 of it.

    before        what was charged already, of which ε counts too: `Budget.charges`
    concentrated  as of `Charge`

    The other parameters and errors are those of `epsilon`; PrivacyError also where no noise reaches it, and
    PrivacyBudgetError where `before` alone has spent it.
    """
    epsilon = check_epsilon(epsilon)
    for charge in before:
        if not isinstance(charge, Charge):
            raise PrivacyError(f"before: got {shown(charge)}, expected what was charged, such as `Budget.charges`")
    _check(Charge(1.0, sampling_rate, rounds, dimension, concentrated, stream), delta, sampling, neighbours, population)
    if (already := spent(before, delta, sampling, neighbours)) >= epsilon:
        raise PrivacyBudgetError(
            f"epsilon: {already:.4g} of {epsilon:g} is spent by {len(before)} earlier charges; nothing is left for this"
        )

    # enough where sampling amplifies; Rényi accounting of few fixed-size rounds may need more than no sampling does
    shift = 2.0 if neighbours == "replace_one" else 1.0
    log_z = math.log(shift * math.sqrt(rounds) * float(dp_accounting().get_sigma_gaussian(epsilon, delta)))
    # wider steps are quick and come close from above; fixed-size samples are accounted without any
    for interval in (INTERVAL,) if sampling == "fixed" else (100 * INTERVAL, 10 * INTERVAL, INTERVAL):

        def excess(log_z: float, interval: float = interval) -> float:
            """ln(ε(z) / ε): falls through 0 at the answer."""
            charge = Charge(_multiplier(log_z), sampling_rate, rounds, dimension, concentrated, stream)
            return math.log(max(spent([*before, charge], delta, sampling, neighbours, interval), 1e-12) / epsilon)

        log_z = _root(excess, log_z, math.log(LEAST_MULTIPLIER), math.log(MOST_MULTIPLIER))
        if log_z == math.inf:
            raise PrivacyError(f"epsilon: got {epsilon:g} at delta {delta:g}, which no noise reaches; raise either")
        if log_z == -math.inf:
            raise PrivacyError(
                f"epsilon: got {epsilon:g} at delta {delta:g}, which noise multiplier {LEAST_MULTIPLIER:.2g} keeps: "
                "that hides nobody; lower either"
            )
    return _multiplier(log_z)


def _multiplier(log_z: float) -> float:
    """exp, within what is accounted."""
    return min(max(math.exp(log_z), LEAST_MULTIPLIER), MOST_MULTIPLIER)


def check_epsilon(epsilon: float) -> float:
    """ε as a float. Raises PrivacyError unless 0 < ε ≤ MOST_EPSILON."""
    found = as_real(epsilon)
    if found is None or not 0 < found <= MOST_EPSILON:
        raise PrivacyError(
            f"{got('epsilon', epsilon)}, expected a number above 0, at most {MOST_EPSILON:g}; without a budget ask "
            "for none"
        )
    return found


def _check(charge: Charge, delta: float, sampling: str, neighbours: str, population: int | None) -> None:
    check_delta(delta, population)
    check_relation(sampling, neighbours, [charge])
    size = charge.sampling_rate * (population or 0)
    if sampling == "fixed" and abs(size - round(size)) > 1e-6:
        raise PrivacyError(
            f"sampling_rate: got {charge.sampling_rate:g} of a population of {population}, which is {size:g} records; "
            "expected a whole number for a sample of a fixed size"
        )


def _root(falling: Callable[[float], float], start: float, least: float, most: float) -> float:
    """x in [least, most] where a falling function is in (-_PRECISION, 0]; inf if it stays above, -inf if below.

    Brackets by growing steps from `start`, then regula falsi of the Illinois kind: ln ε is nearly linear in ln z, so
    that few of the costly evaluations are needed.
    """
    low = high = min(max(start, least), most)
    above = below = falling(low)
    step = min(max(1.5 * abs(above), _PRECISION), 1.0)  # ln ε falls about as fast as ln z rises, or faster
    while below > 0:
        if high == most:
            return math.inf
        low, above = high, below
        high, step = min(high + step, most), 2 * step
        below = falling(high)
    while above <= 0 and below <= -_PRECISION:
        if low == least:
            return -math.inf
        high, below = low, above
        low, step = max(low - step, least), 2 * step
        above = falling(low)
    weight_above, weight_below = above, below + _PRECISION / 2
    while below <= -_PRECISION and high - low > 1e-9:
        share = weight_above / (weight_above - weight_below) if math.isfinite(above) else 0.5
        middle = low + min(max(share, 1e-3), 1 - 1e-3) * (high - low)
        value = falling(middle)
        if value > 0:
            low, above, weight_above, weight_below = middle, value, value, weight_below / 2
        else:
            high, below, weight_above, weight_below = middle, value, weight_above / 2, value + _PRECISION / 2
    return high
