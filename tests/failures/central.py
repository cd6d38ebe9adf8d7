"""Medians and means that are not what their names say."""

from __future__ import annotations

import numpy as np

import fedcore as fc
from failures.finding import Finding
from fedcore.dtypes import to_float64


def smoothed_median(rows: np.ndarray, smoothing: float, steps: int) -> np.ndarray:
    """Weiszfeld from zero with distances below `smoothing` taken as it."""
    z = np.zeros(rows.shape[1])
    for _ in range(steps):
        weights = 1 / np.maximum(np.linalg.norm(rows - z, axis=1), smoothing)
        z = weights @ rows / weights.sum()
    return z


def short_rows() -> np.ndarray:
    """Ten changes of length 0.004 and four attackers at 0.08 in one direction."""
    draw = np.random.default_rng(0)
    honest = draw.normal(0, 1, (10, 16))
    honest *= 0.004 / np.linalg.norm(honest, axis=1, keepdims=True)
    return np.vstack((honest, np.tile(np.eye(16)[0] * 0.08, (4, 1)))).astype(np.float32)


def away_from_honest(found: np.ndarray) -> Finding:
    rows = short_rows()
    ratio = float(np.linalg.norm(found - rows[:10].mean(0)) / np.linalg.norm(rows.mean(0) - rows[:10].mean(0)))
    return f"{ratio:.2f} of the mean's error", ratio > 0.5


#: four points whose geometric median is none of them
POINTS = np.array([[0, 0], [4, 0], [1, 3], [5, 4]], np.float32)


def compounded(steps: int) -> np.ndarray:
    """Weiszfeld from the mean whose weights are divided by the distances of every step so far, not of the last one."""
    weights = np.full(len(POINTS), 1 / len(POINTS))
    z = weights @ POINTS
    for _ in range(steps):
        weights = weights / np.maximum(np.linalg.norm(POINTS - z, axis=1), 1e-5)
        weights /= weights.sum()
        z = weights @ POINTS
    return z


def sum_of_distances(found: np.ndarray) -> Finding:
    """The sum of distances against the least, which 1,000 steps of Weiszfeld's iteration find."""
    z = POINTS.astype(np.float64).mean(0)
    for _ in range(1000):
        weights = 1 / np.maximum(np.linalg.norm(POINTS - z, axis=1), 1e-12)
        z = weights @ POINTS / weights.sum()
    total, least = (float(np.linalg.norm(POINTS - p, axis=1).sum()) for p in (found, z))
    nearest = float(np.linalg.norm(POINTS - found, axis=1).min())
    where = "an input point" if nearest < 1e-3 and np.linalg.norm(z - found) > 1e-2 else "the median"
    return f"sum of distances {max(total / least - 1, 0):.2g} above the least, at {where}", total / least > 1 + 1e-6


def with_attacker() -> np.ndarray:
    rows = np.random.default_rng(0).normal(0, 1e-3, (10, 1000)).astype(np.float32)
    rows[9] = 1e6
    return rows


def total_minus_extremes() -> np.ndarray:
    """(Σ all − largest − smallest) / (n − 2), in fp32."""
    x = with_attacker()
    return (x.sum(0, dtype=np.float32) - x.max(0) - x.min(0)) / np.float32(8)


def trimmed_error(found: np.ndarray) -> Finding:
    exact = np.sort(to_float64(with_attacker()), axis=0)[1:9].mean(0)
    error = float(np.abs(found - exact).max() / np.abs(exact).max())
    return f"error {error:.2g} of the largest value", error > 1e-3


SAMPLES = [50, 60, 70, 80, 90, 100, 110, 120, 130, 140]


def dropped_clients() -> np.ndarray:
    """The mean without the clients with the most and the fewest examples, whatever they send."""
    order = np.argsort(SAMPLES)
    x = to_float64(with_attacker())
    x[[4, 9]] = x[[9, 4]]
    return x[order[1:9]].mean(0)


def attacker_with_middle_count() -> np.ndarray:
    x = with_attacker()
    x[[4, 9]] = x[[9, 4]]
    return fc.rules.TrimmedMean(1)(x, SAMPLES)


EVEN = np.array([[1], [2], [4], [8]], np.float32)


def median_of(found: float) -> Finding:
    return f"median of 1, 2, 4, 8 is {found:g}", found != 3
