"""Clipped terms, integer noise and a fixed denominator: the mean that is released."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedcore.privacy.terms import Terms

#: rows made of updates that are in memory at a time
_GROUP = 8

Noise = np.ndarray | Callable[[int, int], np.ndarray]


def noisy_mean(
    terms: Terms, segments: list[str], clip: float, grid: float, noise: Noise, divisor: int
) -> tuple[np.ndarray, np.ndarray]:
    """((Σ clipped terms + noise) / divisor, squared norms of the terms): (d,) fp32 and (n,) fp64.

    segments  of each term, side by side: d numbers
    noise     (d,) int64 in steps of the grid, or a function of first column and count

    Everything is in whole steps of the grid until it is divided: in any order the same.
    """
    from fedcore.ops.clip_noise_accumulate import clip_noise_accumulate

    n = len(terms.each)
    if n and (terms.statistic is None or n <= _GROUP):  # vectors lie in memory as they are
        found = clip_noise_accumulate(terms.rows(0, n, segments), clip, grid, noise, divisor)
        return np.asarray(found.sum), found.squared_norms
    size = sum(terms.sizes[segment] for segment in segments)
    total, squared = (noise(0, size) if callable(noise) else noise) * grid, [np.zeros(0)]
    for start in range(0, n, _GROUP):
        found = clip_noise_accumulate(terms.rows(start, start + _GROUP, segments), clip, grid, out_dtype="float64")
        total += np.asarray(found.sum)  # below 2**52 steps of a power of two: exact
        squared.append(found.squared_norms)
    return (total / divisor).astype(np.float32), np.concatenate(squared)
