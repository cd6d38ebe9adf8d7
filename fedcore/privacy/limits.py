"""What the numbers of a mechanism may be, so that one that is made can release."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np

from fedcore.errors import PrivacyError
from fedcore.gaussian_table import MOST
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


def check_multiplier(value: Any, name: str = "noise_multiplier") -> None:
    """Raise PrivacyError unless LEAST_MULTIPLIER ≤ z ≤ MOST_MULTIPLIER."""
    if not is_number(value) or not LEAST_MULTIPLIER <= value <= MOST_MULTIPLIER:
        raise PrivacyError(
            f"{name}: got {shown(value)}, expected a number from {LEAST_MULTIPLIER:.3g} to {MOST_MULTIPLIER:g}"
        )


def check_clip(value: Any, module: str = "") -> None:
    """Raise PrivacyError unless LEAST_CLIP ≤ C ≤ LARGEST_CLIP."""
    if not is_number(value) or not LEAST_CLIP <= value <= LARGEST_CLIP:
        where = f" of module {module!r}" if module else ""
        raise PrivacyError(f"clip{where}: got {value!r}, expected a number above 0, from 2**-60 to 2**60")


def check_whole(name: str, value: Any, least: int = 1, most: int = MOST_WHOLE) -> int:
    """A whole number of any kind as an int. Raises PrivacyError unless it is from `least` to `most`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise PrivacyError(f"{name}: got {shown(value)}, expected a whole number of at least {least}")
    if int(value) > most:
        raise PrivacyError(f"{name}: got one of {int(value).bit_length()} bits, expected at most {most}")
    return int(value)


def check_flag(name: str, value: Any) -> bool:
    """A truth value of any kind as a bool. Raises PrivacyError unless it is one."""
    if not isinstance(value, (bool, np.bool_)):
        raise PrivacyError(f"{name}: got {value!r}, expected True or False")
    return bool(value)


def check_text(name: str, value: Any) -> None:
    """Raise PrivacyError unless a value is text."""
    if not isinstance(value, str):
        raise PrivacyError(f"{name}: got {value!r}, expected text")


def settle(of: Any, **values: Any) -> None:
    """Set fields of a frozen dataclass, while it is made, to what they were given as: numbers of NumPy to Python's."""
    for name, value in values.items():
        object.__setattr__(of, name, value)


def check_deviation(deviation: float, what: str, advice: str) -> None:
    """Raise PrivacyError unless noise of so many grid steps can be drawn."""
    if not steps(deviation) <= MOST:
        raise PrivacyError(f"{what} makes noise of {deviation:.3g} steps, expected at most {float(MOST):g}; {advice}")


def number_of(value: object) -> float:
    """A number of any kind as a float; NaN for what is none, or too large for one."""
    try:
        return float(value) if is_number(value) else math.nan  # type: ignore[arg-type]
    except OverflowError:
        return math.nan


def is_number(value: object) -> bool:
    """Whether a value is a number; NaN is one, and fails the comparisons that follow."""
    return isinstance(value, Real) and not isinstance(value, bool)


def shown(value: object) -> str:
    """A value in an error; of an integer that is too long for a line, its length."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"one of {value.bit_length()} bits"
    return repr(value)
