"""The noise that a run's budget asks for, picked once, before anything trains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from fedcore.errors import PrivacyBudgetError, PrivacyError
from fedcore.federation.config_privacy import Privacy
from fedcore.federation.start import Start
from fedcore.lora import Method
from fedcore.privacy import AdaptiveClip, Central, Distributed, noise_multiplier
from fedcore.privacy.accountant import Charge, spent
from fedcore.privacy.seal import KEY_BYTES
from fedcore.privacy.statistic import statistic_of

#: share of ε that has to be left for a run to begin
LEAST_LEFT = 0.01


@dataclass(frozen=True)
class Plan:
    """What privacy.json says: nothing of it depends on the clients' data.

    releases           rounds of all arms: what the noise is picked for
    population         clients in all
    expected_clients   the fixed denominator of a mean
    sampling_rate      share of the population in a round
    numbers            numbers that a release has, the most of any round
    charged            noise multiplier of one release, as the budget has it; in mode "distributed" that of a Gaussian
                       with the same ρ-zCDP
    samples            noise samples of one release, the most of any round
    noise_of_mean      √E‖noise of the mean‖² over the clip
    notes              what a reader should know, in sentences
    """

    mode: str
    epsilon: float
    delta: float
    unit: str
    sampling: str
    neighbours: str
    releases: int
    population: int
    expected_clients: int
    sampling_rate: float
    clip: float
    numbers: int
    charged: float
    samples: int
    noise_of_mean: float
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For privacy.json."""
        return asdict(self)


def make_plan(
    settings: Privacy,
    population: int,
    releases: int,
    arms: Sequence[tuple[Method, Start]],
    before: Sequence[Charge],
    masked: bool = False,
    open_arms: Sequence[str] = (),
) -> Plan:
    """The plan of a run.

    arms    the method of each arm, and what its first round starts from
    before  what the population's budget was charged already
    masked  whether the server sees sums alone
    open_arms  names of the arms beside these that are not private

    Raises PrivacyError naming the parameter, PrivacyBudgetError where nothing is left.
    """
    already = spent(before, settings.delta, settings.sampling, settings.relation)
    if already > (1 - LEAST_LEFT) * settings.epsilon:
        raise PrivacyBudgetError(
            f"epsilon: {already:.4g} of {settings.epsilon:g} is spent by {len(before)} earlier charges; what is left "
            "takes noise that hides everybody"
        )
    expected = settings.expected_clients(population)
    rate = 1.0 if settings.sampling == "none" else expected / population
    sizes = [sizes for method, start in arms for sizes in _segments(settings, method, start)]
    numbers = max(sum(one.values()) for one in sizes)
    counts = [0 if settings.adaptive is None else len(one) if settings.per_module else 1 for one in sizes]
    samples = max(sum(one.values()) + count for one, count in zip(sizes, counts, strict=True))
    if settings.mode == "distributed":
        samples = distributed(settings, population, numbers, 1.0).charge(settings.relation).dimension
    charged = noise_multiplier(
        epsilon=settings.epsilon,
        delta=settings.delta,
        sampling_rate=rate,
        rounds=releases,
        sampling=settings.sampling,
        neighbours=settings.relation,
        population=population,
        dimension=samples,
        before=before,
        concentrated=settings.mode == "distributed",
    )
    # on each number of the sum; each client's own noise adds up in mode "local"
    each = charged * math.sqrt(expected if settings.mode == "local" else 1)
    if settings.adaptive is not None:
        each = AdaptiveClip(**settings.adaptive.model_dump()).remaining(charged, expected, max(counts))
    noise = each * math.sqrt(numbers) / expected
    return Plan(
        mode=settings.mode,
        epsilon=settings.epsilon,
        delta=settings.delta,
        unit=settings.unit,
        sampling=settings.sampling,
        neighbours=settings.relation,
        releases=releases,
        population=population,
        expected_clients=expected,
        sampling_rate=rate,
        clip=settings.clip,
        numbers=numbers,
        charged=charged,
        samples=samples,
        noise_of_mean=noise,
        notes=(
            *_scope(settings, population, open_arms),
            *_notes(settings, noise, any(set(method.sends()) == {"a", "b"} for method, _ in arms), masked),
        ),
    )


def central(settings: Privacy, plan: Plan, clip: Any) -> Central:
    """The mechanism of a round in mode "central", with the clip that adaptive clipping moved to."""
    return Central(
        clip=clip,
        noise_multiplier=plan.charged,
        expected_clients=plan.expected_clients,
        per_module=settings.per_module,
        adaptive=None if settings.adaptive is None else AdaptiveClip(**settings.adaptive.model_dump()),
        both_factors=settings.both_factors,
    )


def distributed(settings: Privacy, clients: int, numbers: int, multiplier: float, seed: bytes = b"") -> Distributed:
    """The mechanism of a round in mode "distributed" at a noise multiplier of the sum."""
    return Distributed(
        clip=settings.clip,
        noise_multiplier=multiplier,
        clients=clients,
        fewest=settings.fewest_clients or clients,
        corrupt=settings.corrupt_clients,
        dimension=numbers,
        seed=seed or bytes(KEY_BYTES),
    )


@lru_cache(maxsize=64)
def multiplier_for(settings: Privacy, clients: int, numbers: int, charged: float) -> float:
    """The noise multiplier of a sum at which one decoded sum costs what `charged` does, by bisection; 1e-6 above."""

    def enough(multiplier: float) -> bool:
        return distributed(settings, clients, numbers, multiplier).charge(settings.relation).noise_multiplier >= charged

    low, high = charged / 2, charged
    while not enough(high):
        low, high = high, 2 * high
        if high > 1e6 * charged:
            raise PrivacyError(f"epsilon: {settings.epsilon:g} is reached by no noise of {clients} clients; raise it")
    while high - low > 1e-6 * low:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _segments(settings: Privacy, method: Method, start: Start) -> Iterator[dict[str, int]]:
    """The parts of a release and their sizes, for each kind of round. Raises PrivacyError where it is not private."""
    for number in range(1, len(method.cycle) + 1):
        yield statistic_of(
            start.adapter, method, number, fixed=start.fixed, both_factors=settings.both_factors
        ).segments


def _scope(settings: Privacy, population: int, open_arms: Sequence[str]) -> Iterator[str]:
    """Towards whom ε holds, and of what."""
    if open_arms:
        yield (
            f"warning: {', '.join(open_arms)}: not private, on the same clients: ε holds for the releases of the "
            "private arms taken alone, and the open arms show what they hide; publish one kind or the other"
        )
    yield (
        "metrics are not covered: held-out texts come from the same pool as the clients', and losses on them are "
        "published as they are"
    )
    if settings.sampling == "none" and settings.relation == "add_remove":
        yield (
            f'sampling = "none": every client is in every round and their number, {population}, is public, so that ε '
            "is of what a client adds to the sums, not of how many clients there are"
        )
    if settings.sampling != "none":
        yield (
            "the sample hides nobody from who watches the clock while the run goes on, or sees who takes part: towards "
            "them ε does not hold"
        )
    if settings.mode == "distributed":
        hidden = "its change replaced by another" if settings.relation == "replace_one" else "its change there or zero"
        yield (
            f"a neighbour of these clients is the same clients with one {settings.unit} that has {hidden}; who takes "
            "part is seen, and its noise is in the sum either way"
        )


def _notes(settings: Privacy, noise: float, both_factors: bool, masked: bool) -> Iterator[str]:
    if settings.budget is None:
        yield (
            "the budget is of this run alone, and other runs over these clients add to what it spends: share one file "
            "among them as privacy.budget"
        )
    if settings.mode == "local":
        yield (
            f"warning: local noise: the expected signal-to-noise ratio of a round is at most {1 / noise:.2g}, if all "
            'clients move the same way by the whole clip; mode = "central" adds the noise once'
        )
    elif noise > 1:
        yield (
            f"warning: the noise of a round's mean is {noise:.3g} times the clip: a round tells more about the noise "
            "than about the clients; take more clients a round, fewer numbers (a lower rank, fedsb) or a larger epsilon"
        )
    if settings.mode == "distributed" and not masked:
        yield (
            "warning: messages are not masked here, so that ε holds towards who sees the sum alone; towards the "
            "server, which sees each message, the noise is that of one client"
        )
    if both_factors:
        yield (
            "warning: both factors are noised, and their noises multiply in B · A: each round's entry in the ledger "
            "has the error that this makes beside that of B alone (error_of_delta)"
        )
