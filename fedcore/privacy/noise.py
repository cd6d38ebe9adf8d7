"""Integer noise for sums on a grid, and why it is as good as the continuous Gaussian that is accounted."""

from __future__ import annotations

import math

import numpy as np

from fedcore.privacy.seal import derived

#: standard deviation, in grid steps, that is added on top of the accounted one
SMOOTHING = 2.0


def steps(deviation: float) -> float:
    """σ of the discrete Gaussian that stands for N(0, deviation²) in grid steps: √(deviation² + 4).

    With s = SMOOTHING let X be N(0, deviation²) and Y an integer drawn with P(Y = k) ∝ exp(-(k - X)²/2s²). The sum over
    all integers of exp(-(k - x)²/2s²) is s√(2π) within a factor 1 ± 2.1 exp(-2π²s²), whatever x is (Poisson summation),
    so that Y has the discrete Gaussian's probabilities of variance deviation² + s² within that factor, twice: 2⁻¹¹² for
    s = 2. An integer sum moves X and Y alike. So the release is what anybody could make of the sum plus continuous
    Gaussian noise, in one dimension or many, sampled or not, up to 2⁻¹¹² (total variation) a sample; accountants of the
    Gaussian mechanism apply as they are. The price is 4/deviation² more variance, at most 0.2 % at z = 1.
    """
    return math.sqrt(deviation**2 + SMOOTHING**2)


def draw(size: int, deviation: float, key: bytes, part: str, counter: int = 0, stream: str = "chacha20") -> np.ndarray:
    """(size,) int64 for N(0, deviation²) in grid steps: of one part of a release, from a key derived for it alone.

    counter is the number of the first sample, stream that of `ops.discrete_gaussian`.
    Samples of one key at two deviations would tell of each other.
    """
    from fedcore.ops.discrete_gaussian import discrete_gaussian

    return np.asarray(discrete_gaussian(size, steps(deviation), derived(key, f"noise of {part}"), counter, stream))
