"""What the numbers of a mechanism may be, so that one that is made can release."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from fedcore.errors import PrivacyError
from fedcore.gaussian_table import MOST
from fedcore.privacy.noise import steps

#: noise multipliers that are accounted: at the least ε of one release passes 10¹⁰, and what is above the most is more
#: than 10⁹ steps of a grid of 0.02 clips, which nothing draws
LEAST_MULTIPLIER, MOST_MULTIPLIER = 2.0**-18, 2e7
#: clips of a mechanism: sums of them and of noise, over any cohort, then are numbers of float32 and of `ops.clip_round`
LEAST_CLIP, LARGEST_CLIP = 2.0**-60, 2.0**60
#: counts of rounds, clients and records, each of which float64 holds; noise samples, of which no ε is finite sooner
MOST_WHOLE, MOST_SAMPLES = 2**53, 2**100
#: rounds of one sampled charge, whose privacy losses are composed in seconds
MOST_SAMPLED_ROUNDS = 10**7


def check_multiplier(value: Any, name: str = "noise_multiplier") -> None:
    """Raise PrivacyError unless LEAST_MULTIPLIER ≤ z ≤ MOST_MULTIPLIER."""
    if not is_number(value) or not LEAST_MULTIPLIER <= value <= MOST_MULTIPLIER:
        raise PrivacyError(
            f"{name}: got {value!r}, expected a number from {LEAST_MULTIPLIER:.3g} to {MOST_MULTIPLIER:g}"
        )


def check_clip(value: Any, module: str = "") -> None:
    """Raise PrivacyError unless LEAST_CLIP ≤ C ≤ LARGEST_CLIP."""
    if not is_number(value) or not LEAST_CLIP <= value <= LARGEST_CLIP:
        where = f" of module {module!r}" if module else ""
        raise PrivacyError(f"clip{where}: got {value!r}, expected a number above 0, from 2**-60 to 2**60")


def check_whole(name: str, value: Any, least: int = 1, most: int = MOST_WHOLE) -> None:
    """Raise PrivacyError unless a value is a whole number from `least` to `most`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise PrivacyError(f"{name}: got {value!r}, expected a whole number of at least {least}")
    if int(value) > most:
        raise PrivacyError(f"{name}: got one of {int(value).bit_length()} bits, expected at most {most}")


def check_deviation(deviation: float, what: str, advice: str) -> None:
    """Raise PrivacyError unless noise of so many grid steps can be drawn."""
    if not steps(deviation) <= MOST:
        raise PrivacyError(f"{what} makes noise of {deviation:.3g} steps, expected at most {float(MOST):g}; {advice}")


def is_number(value: object) -> bool:
    """Whether a value is a number; NaN is one, and fails the comparisons that follow."""
    return isinstance(value, Real) and not isinstance(value, bool)
