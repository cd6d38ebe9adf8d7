"""The mechanism that [privacy] describes, at a noise multiplier."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from fedcore.errors import PrivacyError
from fedcore.federation.config_privacy import Privacy
from fedcore.privacy import AdaptiveClip, Central, Correlated, Distributed
from fedcore.privacy.seal import KEY_BYTES


def central(settings: Privacy, expected: int, multiplier: float, clip: Any) -> Central:
    """The mechanism of a round in mode "central", with the clip that adaptive clipping moved to."""
    return Central(
        clip=clip,
        noise_multiplier=multiplier,
        expected_clients=expected,
        per_module=settings.per_module,
        adaptive=None if settings.adaptive is None else AdaptiveClip(**settings.adaptive.model_dump()),
        both_factors=settings.both_factors,
        stream=settings.stream,
    )


def correlated(settings: Privacy, expected: int, multiplier: float, rounds: int) -> Correlated:
    """The mechanism of all rounds of an arm in mode "correlated"."""
    assert settings.separation is not None
    return Correlated(
        clip=settings.clip,
        noise_multiplier=multiplier,
        expected_clients=expected,
        rounds=rounds,
        separation=settings.separation,
        stream=settings.stream,
    )


def corrupt_among(settings: Privacy, clients: int) -> int:
    """Clients of a sum, in mode "distributed", whose noise hides nobody.

    At least one where there are others: whoever is in the sum knows its own noise, and may read what is published.
    """
    return max(settings.corrupt_clients, min(1, clients - 1))


def distributed(settings: Privacy, clients: int, numbers: int, multiplier: float, seed: bytes = b"") -> Distributed:
    """The mechanism of a round in mode "distributed" at a noise multiplier of the sum."""
    return Distributed(
        clip=settings.clip,
        noise_multiplier=multiplier,
        clients=clients,
        fewest=settings.fewest_clients or clients,
        corrupt=corrupt_among(settings, clients),
        dimension=numbers,
        seed=seed or bytes(KEY_BYTES),
        stream=settings.stream,
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
