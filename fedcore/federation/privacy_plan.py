"""The noise that a run's budget asks for, picked once, before anything trains."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedcore.errors import PrivacyBudgetError
from fedcore.federation.config_privacy import Privacy
from fedcore.federation.privacy_mechanisms import central, correlated, distributed, multiplier_for
from fedcore.federation.privacy_notes import notes_on, scope
from fedcore.federation.start import Start
from fedcore.lora import Method
from fedcore.privacy import AdaptiveClip, noise_multiplier
from fedcore.privacy.accountant import Charge, spent
from fedcore.privacy.statistic import statistic_of

#: share of ε that has to be left for a run to begin
LEAST_LEFT = 0.01


@dataclass(frozen=True)
class Plan:
    """What privacy.json says: nothing of it depends on the clients' data.

    releases           rounds of all arms: what the noise is picked for
    separation         mode "correlated": rounds from one of a client to its next
    population         clients in all
    expected_clients   the fixed denominator of a mean
    sampling_rate      share of the population in a round
    numbers            numbers that a release has, the most of any round
    charged            noise multiplier of one charge, as the budget has it; in mode "distributed" that of a Gaussian
                       with the same ρ-zCDP
    samples            noise samples of one charge: of a release, the most of any round, or of an arm's rounds together
    noise_of_mean      √E‖noise of the mean‖² over the clip; over the rounds where they differ
    notes              what a reader should know, in sentences
    run                names this run in the population's budget
    spend              ε that the run alone may come to, None for all that is left
    head               of the budget when the plan was made: number of records, MAC of the last
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
    separation: int | None = None
    run: str = ""
    spend: float | None = None
    head: tuple[int, str] = (0, "")

    def as_json(self) -> dict[str, Any]:
        """For privacy.json."""
        return asdict(self)


def make_plan(
    settings: Privacy,
    population: int,
    rounds: int,
    arms: Sequence[tuple[Method, Start]],
    before: Sequence[Charge],
    masked: bool,
    open_arms: Sequence[str],
    dealt: str | None,
) -> Plan:
    """The plan of a run.

    rounds  of each arm
    arms    the method of each arm, and what its first round starts from
    before  what the population's budget was charged already
    masked  whether the server sees sums alone
    open_arms  names of the arms beside these that are not private
    dealt   partition.kind, where it deals one pile of texts to the clients

    Raises PrivacyError naming the parameter, PrivacyBudgetError where nothing is left.
    """
    already = spent(before, settings.delta, settings.sampling, settings.relation)
    if already > (1 - LEAST_LEFT) * settings.epsilon:
        raise PrivacyBudgetError(
            f"epsilon: {already:.4g} of {settings.epsilon:g} is spent by {len(before)} earlier charges; what is left "
            "takes noise that hides everybody; runs that are to share a budget say with privacy.spend what each takes"
        )
    expected = settings.expected_clients(population)
    rate = 1.0 if settings.sampling == "none" else expected / population
    sizes = [sizes for method, start in arms for sizes in _segments(settings, method, start)]
    numbers = max(sum(one.values()) for one in sizes)
    counts = [0 if settings.adaptive is None else len(one) if settings.per_module else 1 for one in sizes]
    samples = max(sum(one.values()) + count for one, count in zip(sizes, counts, strict=True))
    if settings.mode == "distributed":
        samples = distributed(settings, population, numbers, 1.0).charge(settings.relation).dimension
    if settings.mode == "correlated":
        samples = rounds * numbers
    charged = _least_noise(
        settings,
        delta=settings.delta,
        sampling_rate=rate,
        # one charge covers an arm whose noise is correlated
        rounds=len(arms) if settings.mode == "correlated" else rounds * len(arms),
        sampling=settings.sampling,
        neighbours=settings.relation,
        population=population,
        dimension=samples,
        before=before,
        concentrated=settings.mode == "distributed",
        stream=settings.stream,
    )
    _check_drawn(settings, population, rounds, arms, charged)
    noise = _noise_of_sum(settings, charged, expected, rounds, max(counts)) * math.sqrt(numbers) / expected
    return Plan(
        mode=settings.mode,
        epsilon=settings.epsilon,
        delta=settings.delta,
        unit=settings.unit,
        sampling=settings.sampling,
        neighbours=settings.relation,
        releases=rounds * len(arms),
        population=population,
        expected_clients=expected,
        sampling_rate=rate,
        clip=settings.clip,
        numbers=numbers,
        charged=charged,
        samples=samples,
        noise_of_mean=noise,
        notes=(
            *scope(settings, population, open_arms, dealt),
            *notes_on(settings, noise, any(set(method.sends()) == {"a", "b"} for method, _ in arms), masked, rounds),
        ),
        separation=settings.separation,
        run=os.urandom(16).hex(),
        spend=settings.spend,
    )


def _check_drawn(
    settings: Privacy, population: int, rounds: int, arms: Sequence[tuple[Method, Start]], charged: float
) -> None:
    """Raise, before anything trains or is charged, where a mechanism could not release at this noise.

    Raises PrivacyError, RangeError for a dtype that might not hold it, LayoutError for an adapter that the method does
    not take.
    """
    expected = 1 if settings.mode == "local" else settings.expected_clients(population)
    for method, start in arms:
        for number, segments in enumerate(_segments(settings, method, start), 1):
            size = sum(segments.values())
            # what the server makes of a mean, which a module of another shape may not allow
            method.aggregate([start.adapter], [1.0], start.fixed or start.adapter, number=number)
            if settings.mode == "correlated":
                correlated(settings, expected, charged, rounds).deviation(size)
            elif settings.mode == "distributed":
                distributed(settings, population, size, multiplier_for(settings, population, size, charged))
            else:
                mechanism = central(settings, expected, charged, settings.clip)
                mechanism.dimension(start.adapter, method=method, fixed=start.fixed, number=number)


def _noise_of_sum(settings: Privacy, charged: float, expected: int, rounds: int, counts: int) -> float:
    """Standard deviation over the clip of each number of a round's sum."""
    if settings.mode == "local":  # each client's own noise adds up
        return charged * math.sqrt(expected)
    if settings.mode == "correlated":
        deviations = correlated(settings, expected, charged, rounds).factor.noise_of_rounds
        return charged * math.sqrt(float((deviations**2).mean()))
    if settings.adaptive is not None:
        return AdaptiveClip(**settings.adaptive.model_dump()).remaining(charged, expected, counts)
    return charged


def _segments(settings: Privacy, method: Method, start: Start) -> Iterator[dict[str, int]]:
    """The parts of a release and their sizes, for each kind of round. Raises PrivacyError where it is not private."""
    for number in range(1, len(method.cycle) + 1):
        yield statistic_of(
            start.adapter, method, number, fixed=start.fixed, both_factors=settings.both_factors
        ).segments


def _least_noise(settings: Privacy, *, before: Sequence[Charge], **plan: Any) -> float:
    """The noise multiplier with which the population keeps its ε, and the run its share of it."""
    charged = noise_multiplier(epsilon=settings.epsilon, before=before, **plan)
    if settings.spend is None:
        return charged
    return max(charged, noise_multiplier(epsilon=settings.spend, **plan))
