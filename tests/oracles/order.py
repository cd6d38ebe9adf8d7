"""What each order statistic means, in a few lines of NumPy in fp64 on a ready matrix."""

from __future__ import annotations

import numpy as np


def median(rows: np.ndarray) -> np.ndarray:
    """The middle value, or the mean of the middle two."""
    return np.median(np.asarray(rows, np.float64), axis=0)


def trimmed_mean(rows: np.ndarray, f: int) -> np.ndarray:
    """The mean without the f smallest and the f largest."""
    return _mean(np.sort(np.asarray(rows, np.float64), axis=0)[f : len(rows) - f])


def mean_around_median(rows: np.ndarray, f: int) -> np.ndarray:
    """The mean of the n − f values closest to the median; ties to the smaller."""
    x = np.sort(np.asarray(rows, np.float64), axis=0)
    order = np.argsort(np.abs(x - np.median(x, axis=0)), axis=0, kind="stable")[: len(x) - f]
    return _mean(np.sort(np.take_along_axis(x, order, 0), axis=0))


def _mean(kept: np.ndarray) -> np.ndarray:
    """One after the other from the smallest on: where they cancel another order is another mean."""
    return np.cumsum(kept, axis=0)[-1] / len(kept)


def sign_majority(rows: np.ndarray, reference: np.ndarray, step: float) -> np.ndarray:
    """r + step · sign(Σ sign(x_i − r))."""
    r = np.asarray(reference, np.float64)
    return r + np.float32(step) * np.sign(np.sign(np.asarray(rows, np.float64) - r).sum(0))
