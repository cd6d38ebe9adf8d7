"""discrete_gaussian: ten million samples at each σ against the law; a billion are in benchmarks/sampler_proof.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fedcore as fc

KEY = bytes(range(60, 92))
SAMPLES, PART = 10_000_000, 1 << 20


def chi_square(observed: np.ndarray, probabilities: np.ndarray) -> float:
    """Standard deviations of χ² above its mean, bins of an expected count under 10 joined to the last."""
    expected = probabilities * observed.sum()
    keep = expected >= 10
    observed = np.append(observed[keep], observed[~keep].sum())
    expected = np.append(expected[keep], expected[~keep].sum())
    freedom = len(observed) - 1
    return (((observed - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


def above(sigma: float, x: float) -> float:
    """P(X > x), x halfway between integers: by sums where σ is small, else the normal law, 1e-5 off at most."""
    if sigma > 100:
        return math.erfc(x / sigma / math.sqrt(2)) / 2
    weights = np.exp(-(np.arange(-2000, 2001) ** 2) / (2 * sigma**2))
    return weights[2001 + math.floor(x) :].sum() / weights.sum()


@pytest.mark.parametrize("sigma", [0.5, math.sqrt(17), 129, 1e6])
def test_ten_million_samples(sigma):
    """χ² over all values (in bins of a fiftieth of σ where σ is large), signs, tails, moments and later samples."""
    width = 2 * math.floor(sigma / 100) + 1 if sigma > 100 else 1  # odd, so that bins lie evenly about 0
    count = math.ceil(9 * sigma / width)
    observed, lags, squares, fourths, total = np.zeros(2 * count + 1, np.int64), {1: 0.0, 2: 0.0, 8: 0.0}, 0.0, 0.0, 0
    for start in range(0, SAMPLES, PART):
        samples = fc.ops.discrete_gaussian(min(PART, SAMPLES - start), sigma, KEY, start)
        places = samples + (count * width + width // 2)
        observed += np.bincount(places if width == 1 else places // width, minlength=len(observed))
        values = samples / sigma
        total += int(samples.sum())
        squares += float(values @ values)
        fourths += float(np.square(values) @ np.square(values))
        for lag in lags:
            lags[lag] += float(values[lag:] @ values[:-lag])
    edges = [(k - 0.5) * width for k in range(-count, count + 2)]
    probabilities = -np.diff([above(sigma, edge) for edge in edges])
    assert observed.sum() == SAMPLES
    assert abs(chi_square(observed, probabilities)) < 5
    spread = math.sqrt(SAMPLES)
    middle = (np.arange(-count, count + 1) * width / sigma) ** 2
    variance = float(probabilities @ middle) if width == 1 else 1.0
    assert abs(int(observed[count + 1 :].sum()) - int(observed[:count].sum())) < 5 * spread
    assert abs(total) < 5 * sigma * spread
    assert abs(squares / SAMPLES - variance) < 5 * math.sqrt(fourths / SAMPLES - variance**2) / spread
    for product in lags.values():
        assert abs(product / squares) < 5 / spread
    for cut in (3, 4.5, 5.5):  # tails, each side, from the next edge of a bin on
        first = math.floor(cut * sigma / width) + 1
        expected = SAMPLES * above(sigma, (first - 0.5) * width)
        for side in (observed[count + first :], observed[: count - first + 1]):
            assert abs(int(side.sum()) - expected) < 5 * math.sqrt(expected) + 5
