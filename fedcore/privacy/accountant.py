"""ε of a list of charges: what noisy sums of clipped terms, sampled in one way, have cost so far.

noise_multiplier z is the noise's standard deviation over the clipping bound C, under both neighbour relations. How far
neighbours move the sum is the accountant's to know: C when a record comes or goes, 2C when it is replaced.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fedcore.errors import DependencyError, PrivacyError
from fedcore.gaussian_table import MOST_TERMS, TIES
from fedcore.numbers import among, as_real, flag, got, keep
from fedcore.privacy.limits import (
    MOST_SAMPLED_ROUNDS,
    MOST_SAMPLES,
    MOST_WHOLE,
    check_multiplier,
    check_whole,
)

SAMPLING = ("poisson", "fixed", "none")
NEIGHBOURS = ("add_remove", "replace_one")
#: a drawn sample is within 2**-BITS (total variation) of the noise that is accounted: 2**-100 of `discrete_gaussian`
#: and 2**-112 of a discrete in place of a continuous Gaussian (`fedcore.privacy.noise`)
BITS = 99
#: streams that noise is drawn from, as in `ops.discrete_gaussian`
STREAMS = ("chacha20", "aes256ctr")
#: chance, at most, that masks leave some message of a round open: 2**`secagg.search.SECURITY`
EXPOSED = 2.0**-40
#: width of the steps that privacy losses are rounded up to, where those of one release span about WIDTH and of all
#: together COMPOSED; wider ones where they span more
INTERVAL, WIDTH, COMPOSED = 1e-4, 10.0, 100.0
#: below this noise multiplier ε of one release is above 5000, and a Poisson sample counts as the whole
LITTLE = 0.01


@dataclass(frozen=True, order=True)
class Charge:
    """`rounds` releases with one noise multiplier and sampling rate, each of `dimension` noise samples.

    concentrated  what is known of the noise is ρ-zCDP alone, that of a Gaussian with this multiplier: sums of discrete
                  Gaussians (`fedcore.privacy.discrete_sums`), under masks as a rule. Never sampled
    stream        that the noise is drawn from
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    rounds: int = 1
    dimension: int = 0
    concentrated: bool = False
    stream: str = "chacha20"

    def __post_init__(self) -> None:
        z, q = check_multiplier(self.noise_multiplier), as_real(self.sampling_rate)
        if q is None or not 0 < q <= 1:
            raise PrivacyError(
                f"{got('sampling_rate', self.sampling_rate)}, expected the share of the population in a round, in "
                "(0, 1]"
            )
        rounds = check_whole("rounds", self.rounds, most=MOST_WHOLE if q == 1 else MOST_SAMPLED_ROUNDS)
        dimension = check_whole("dimension", self.dimension, 0, MOST_SAMPLES)
        if not among(self.stream, STREAMS):
            raise PrivacyError(f"{got('stream', self.stream)}, expected one of {', '.join(STREAMS)}")
        concentrated = flag("concentrated", self.concentrated, error=PrivacyError)
        if concentrated and q != 1:
            raise PrivacyError(
                f"sampling_rate: got {q:g} for noise that clients add, expected 1; who adds up messages sees who sent"
            )
        keep(self, noise_multiplier=z, sampling_rate=q, rounds=rounds, dimension=dimension, concentrated=concentrated)

    @property
    def distance(self) -> float:
        """Total variation, at most, between the noise of all rounds and the noise that is analysed.

        2^-BITS a sample; of AES in counter mode also n²/2^129 for the n blocks of a round, by which a permutation
        differs from a function (the PRP/PRF switching lemma: Bellare and Rogaway 2006, "The Security of Triple
        Encryption and a Framework for Code-Based Game-Playing Proofs", EUROCRYPT, Lemma 1).
        """
        # a sample rests on a word of each of its draws, on those of samples before it, which count for themselves, and
        # on words for ties, each in one block of its stream; a part of a release begins with its sample 0
        blocks = (MOST_TERMS + TIES) * self.dimension if self.stream == "aes256ctr" else 0
        return self.rounds * (self.dimension * 2.0**-BITS + blocks**2 * 2.0**-129)

    @property
    def exposed(self) -> float:
        """Chance, at most, that masks leave a message of any round open: no noise but its client's is in that."""
        return self.rounds * EXPOSED if self.concentrated else 0.0


def check_delta(delta: float, population: int | None = None) -> float:
    """δ as a float. Raises PrivacyError unless 0 < δ < 1, and δ < 1/n for a population of n records.

    A mechanism that publishes one record at random is (0, 1/n)-private.
    """
    if population is not None:
        population = check_whole("population", population)
    found = as_real(delta)
    if found is None or not 0 < found < 1:
        raise PrivacyError(f"{got('delta', delta)}, expected a number in (0, 1), well below 1 over the population")
    if population is not None and found * population >= 1:
        raise PrivacyError(
            f"delta: got {found:g} for a population of {population}, expected less than 1/{population} = "
            f"{1 / population:.3g}; at that size publishing one record whole would count as private"
        )
    return found


def check_relation(sampling: str, neighbours: str, charges: Iterable[Charge] = ()) -> None:
    """Raise PrivacyError for an unknown name, or for a sampling that the relation or a rate does not go with."""
    for name, value, known in (("sampling", sampling, SAMPLING), ("neighbours", neighbours, NEIGHBOURS)):
        if not among(value, known):
            raise PrivacyError(f"{got(name, value)}, expected one of {', '.join(known)}")
    if sampling == "fixed" and neighbours != "replace_one":
        raise PrivacyError(
            "neighbours: got 'add_remove' with sampling 'fixed', expected 'replace_one'; samples of a fixed size are "
            "analysed for neighbours of equal size alone (Wang, Balle, Kasiviswanathan 2019)"
        )
    if sampling == "none":
        for charge in charges:
            if charge.sampling_rate != 1:
                raise PrivacyError(
                    f"sampling_rate: got {charge.sampling_rate:g} with sampling 'none', expected 1; a sample that is "
                    "not random, or that somebody sees, hides nobody"
                )


def spent(charges: Iterable[Charge], delta: float, sampling: str, neighbours: str, interval: float = INTERVAL) -> float:
    """ε at `delta` of all charges together; 0.0 for none, inf where δ is less than what samplers and masks take.

    One closed form where nobody is sampled (rate 1), or at so little noise that a sample hides nobody either: composed
    Gaussians are one Gaussian, μ² = Σ rounds (s/z)² with s = 1 or 2, and Balle and Wang 2018 (arXiv 1805.06530, Theorem
    8) give its ε exactly. Poisson samples: privacy loss distributions, rounded pessimistically (Doroshenko et al.
    2022). Samples of a fixed size: Rényi divergences of Wang, Balle and Kasiviswanathan 2019 (arXiv 1808.00087, Theorem
    27), where z counts relative to 2C.

    A Poisson sample with a replaced record is dominated by q N(C) + (1 - q) N(0) against q N(-C) + (1 - q) N(0), which
    is the pair that dp-accounting's distributions take. For terms u and v, what an event can tell at slope a >= 1 is
    E (q X - a q Y - (a - 1)(1 - q))+ under N(0), X = exp(<u, x> - |u|²/2) and Y likewise of v: the price of a spread.
    It falls as <u, v> grows (Plackett's identity, the cross derivative is at most 0), so that v points against u; on
    that line the best events are half-lines, and longer u and v make each tell more. A wider `interval` is quicker and
    gives a larger ε. Where a charge is `concentrated`, all compose as ρ-zCDP, ρ = Σ rounds (s/z)²/2: none is sampled.

    The noise that is drawn is not the one that is analysed but within η = Σ `Charge.distance` of it in total variation,
    so that (1 + e^ε) η is part of δ. So is Σ `Charge.exposed`, by which masks fail whatever the clients' data are.
    """
    grouped: dict[tuple[float, float], int] = {}
    distance, concentrated = 0.0, False
    for charge in charges:
        key = (charge.noise_multiplier, charge.sampling_rate)
        grouped[key] = grouped.get(key, 0) + charge.rounds
        distance += charge.distance
        delta -= charge.exposed
        concentrated = concentrated or charge.concentrated
    if not grouped:
        return 0.0
    if delta <= 0:
        return math.inf
    groups = tuple(sorted(grouped.items()))
    found, left = 0.0, delta
    for _ in range(30):  # the term is as a rule so small a part of δ that the second pass settles it
        found = _epsilon(groups, left, sampling, neighbours, interval, concentrated)
        if not math.isfinite(found) or delta - _widened(found, distance) >= left:
            return found
        # a little more than the term asks for, so that the next ε still satisfies its own
        left = delta - 1.001 * _widened(found, distance)
        if left <= 0:
            break
    return math.inf


def taken(charges: Iterable[Charge]) -> float:
    """What samplers and masks take of δ at least, however much noise there is: 2 η at ε = 0, and Σ `Charge.exposed`."""
    return sum(2 * charge.distance + charge.exposed for charge in charges)


def _widened(epsilon: float, distance: float) -> float:
    """(1 + e^ε) η, what noise within η of the analysed one adds to δ.

    From P ≤ P* + η ≤ e^ε Q* + δ + η ≤ e^ε (Q + η) + δ + η.
    """
    return (1 + math.exp(min(epsilon, 700.0))) * distance


@lru_cache(maxsize=512)
def _epsilon(
    groups: tuple[tuple[tuple[float, float], int], ...],
    delta: float,
    sampling: str,
    neighbours: str,
    interval: float,
    concentrated: bool = False,
) -> float:
    """ε of ((z, q), rounds) groups, as `spent` says; all of them by ρ-zCDP where some are `concentrated`."""
    accounting = dp_accounting()
    if concentrated:
        change = 2.0 if neighbours == "replace_one" else 1.0
        accountant = accounting.rdp.RdpAccountant()
        accountant.compose(accounting.ZCDpEvent(sum(rounds * (change / z) ** 2 / 2 for (z, _), rounds in groups)))
        return float(accountant.get_epsilon(delta))
    little = sampling == "poisson" and min(z for (z, _), _ in groups) < LITTLE
    if little or all(q == 1 for (_, q), _ in groups):
        shift = 2.0 if neighbours == "replace_one" else 1.0
        sigma = 1 / math.sqrt(sum(rounds * (shift / z) ** 2 for (z, _), rounds in groups))
        return float(accounting.get_epsilon_gaussian(sigma, delta))
    replace = neighbours == "replace_one"
    relation = accounting.NeighboringRelation.REPLACE_ONE if replace else None
    if sampling == "fixed":
        accountant = accounting.rdp.RdpAccountant(neighboring_relation=relation)
    else:
        # unlike the Rényi accountant this one takes z relative to C under both relations
        accountant = accounting.pld.PLDAccountant(
            relation or accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
            value_discretization_interval=interval * _spread(groups),
        )
    for (z, q), rounds in groups:
        if sampling == "fixed":
            # this accountant takes z relative to the sensitivity, which is 2C here; with z it is off by a factor of 6
            event = accounting.SampledWithoutReplacementDpEvent(1, q, accounting.GaussianDpEvent(z / 2))
        else:
            event = accounting.PoissonSampledDpEvent(q, accounting.GaussianDpEvent(z))
        accountant.compose(event, rounds)
    return float(accountant.get_epsilon(delta))


def _spread(groups: tuple[tuple[tuple[float, float], int], ...]) -> float:
    """How many times wider than INTERVAL steps are, so that some 10⁵ of them hold the privacy losses.

    Those of one release are within about (1/z)²/2 + 8/z; the variance of a sampled one is about q² (exp(1/z²) - 1),
    and at most 1/z², and variances of rounds add up.
    """
    widest, variance = 0.0, 0.0
    for (z, q), rounds in groups:
        widest = max(widest, z**-2 / 2 + 8 / z)
        variance += rounds * min(z**-2, q**2 * math.expm1(min(z**-2, 700.0)))
    return max(1.0, widest / WIDTH, 16 * math.sqrt(variance) / COMPOSED)


def dp_accounting() -> Any:
    """The dp-accounting package. Raises DependencyError naming the extra."""
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError:
        raise DependencyError(
            "privacy accounting needs the dp-accounting package; install fedcore[train]", name="dp_accounting"
        ) from None
    return dp_accounting
