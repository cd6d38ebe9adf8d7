"""What the numbers of a mechanism may be, so that one that is made can release."""

from __future__ import annotations

from typing import Any

from fedcore.errors import PrivacyError
from fedcore.gaussian_table import MOST
from fedcore.numbers import as_real, got, shown, whole
from fedcore.privacy.noise import steps

#: noise multipliers that are accounted: at the least ε of one release passes 10¹⁰, and what is above the most is more
#: than 10⁹ steps of a grid of 0.02 clips, which nothing draws
LEAST_MULTIPLIER, MOST_MULTIPLIER = 2.0**-18, 2e7
#: budgets: from some 1e155 on SciPy looks for their noise in vain, and from 1e11 on it is below the least
MOST_EPSILON = 1e100
#: standard deviations of the noise on a count of clipped clients
LEAST_COUNT_NOISE, MOST_COUNT_NOISE = 2.0**-18, 1e9
#: clips of a mechanism: sums of them and of noise, over any cohort, then are numbers of float32 and of `ops.clip_round`
LEAST_CLIP, LARGEST_CLIP = 2.0**-60, 2.0**60
#: counts of rounds, clients and records, each of which float64 holds; noise samples, of which no ε is finite sooner
MOST_WHOLE, MOST_SAMPLES = 2**53, 2**100
#: rounds of one sampled charge, whose privacy losses are composed in seconds
MOST_SAMPLED_ROUNDS = 10**7


def check_multiplier(value: Any, name: str = "noise_multiplier") -> float:
    """A multiplier z as a float. Raises PrivacyError unless LEAST_MULTIPLIER ≤ z ≤ MOST_MULTIPLIER."""
    z = as_real(value)
    if z is None or not LEAST_MULTIPLIER <= z <= MOST_MULTIPLIER:
        raise PrivacyError(f"{got(name, value)}, expected a number from {LEAST_MULTIPLIER:.3g} to {MOST_MULTIPLIER:g}")
    return z


def check_clip(value: Any, module: str = "") -> float:
    """A clip C as a float. Raises PrivacyError unless LEAST_CLIP ≤ C ≤ LARGEST_CLIP."""
    clip = as_real(value)
    if clip is None or not LEAST_CLIP <= clip <= LARGEST_CLIP:
        where = f" of module {shown(module)}" if module else ""
        raise PrivacyError(f"{got(f'clip{where}', value)}, expected a number above 0, from 2**-60 to 2**60")
    return clip


def check_whole(name: str, value: Any, least: int = 1, most: int = MOST_WHOLE) -> int:
    """A whole number of any kind as an int. Raises PrivacyError unless it is from `least` to `most`."""
    return whole(name, value, least, most, error=PrivacyError)


def check_text(name: str, value: Any) -> None:
    """Raise PrivacyError unless a value is text."""
    if not isinstance(value, str):
        raise PrivacyError(f"{got(name, value)}, expected text")


def check_deviation(deviation: float, what: str, advice: str) -> None:
    """Raise PrivacyError unless noise of so many grid steps can be drawn."""
    if not steps(deviation) <= MOST:
        raise PrivacyError(f"{what} makes noise of {deviation:.3g} steps, expected at most {float(MOST):g}; {advice}")
