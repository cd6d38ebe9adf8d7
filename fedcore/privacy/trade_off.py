"""What a privacy budget costs before anything runs: noise against the clip, and the clients that it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedcore.errors import PrivacyError
from fedcore.numbers import among, got
from fedcore.privacy.accountant import SAMPLING
from fedcore.privacy.accounting import noise_multiplier
from fedcore.privacy.limits import MOST_SAMPLES, check_whole


@dataclass(frozen=True)
class TradeOff:
    """The price of (ε, δ) for a plan of rounds.

    noise_multiplier  standard deviation of the noise on the sum, over the clip
    noise_per_number  of the noise on each number of the mean, over the clip
    relative_error    √E‖released - mean of clipped terms‖² over the clip, the most that the norm of that mean can be:
                      noise_per_number · √dimension. Clients that disagree make it larger
    clients_needed    expected clients in a round for a relative error of at most 1, at this sampling rate or smaller
    local_multiplier  noise multiplier of each client were no server trusted (local DP), with its relative error
    """

    noise_multiplier: float
    noise_per_number: float
    relative_error: float
    clients_needed: int
    local_multiplier: float
    local_relative_error: float


def trade_off(
    *,
    epsilon: float,
    delta: float,
    rounds: int,
    clients: int,
    population: int,
    dimension: int,
    sampling: str = "poisson",
    neighbours: str = "add_remove",
) -> TradeOff:
    """The trade-off of a plan.

    clients     expected in a round; the sampling rate is clients / population, or 1 with sampling "none"
    dimension   numbers that are released: r · d_out summed over modules where A is frozen

    Raises PrivacyError naming the parameter.
    """
    rounds, clients = check_whole("rounds", rounds), check_whole("clients", clients)
    population, dimension = check_whole("population", population), check_whole("dimension", dimension, 1, MOST_SAMPLES)
    if clients > population:
        raise PrivacyError(f"clients: got {clients} a round of a population of {population}; expected at most that")
    if not among(sampling, SAMPLING):
        raise PrivacyError(f"{got('sampling', sampling)}, expected one of {', '.join(SAMPLING)}")
    rate = 1.0 if sampling == "none" else clients / population
    plan = {"epsilon": epsilon, "delta": delta, "rounds": rounds, "population": population}
    z = noise_multiplier(**plan, sampling_rate=rate, sampling=sampling, neighbours=neighbours, dimension=dimension)  # type: ignore[arg-type]
    # whoever adds noise at home is seen to take part, so nothing is sampled; a report is replaced, never absent
    local = noise_multiplier(**plan, sampling="none", neighbours="replace_one", dimension=dimension)  # type: ignore[arg-type]
    return TradeOff(
        noise_multiplier=z,
        noise_per_number=z / clients,
        relative_error=z * math.sqrt(dimension) / clients,
        clients_needed=math.ceil(z * math.sqrt(dimension)),
        local_multiplier=local,
        local_relative_error=local * math.sqrt(dimension / clients),
    )
