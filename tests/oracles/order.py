"""What each order statistic means, in a few lines of NumPy in fp64 on a ready matrix."""

from __future__ import annotations

import numpy as np


def median(rows: np.ndarray) -> np.ndarray:
    """The middle value, or the mean of the middle two."""
    return np.median(np.asarray(rows, np.float64), axis=0)


def trimmed_mean(rows: np.ndarray, f: int) -> np.ndarray:
    """The mean without the f smallest and the f largest."""
    return np.sort(np.asarray(rows, np.float64), axis=0)[f : len(rows) - f].mean(0)


def mean_around_median(rows: np.ndarray, f: int) -> np.ndarray:
    """The mean of the n − f values closest to the median; ties to the smaller."""
    x = np.sort(np.asarray(rows, np.float64), axis=0)
    order = np.argsort(np.abs(x - np.median(x, axis=0)), axis=0, kind="stable")[: len(x) - f]
    return np.take_along_axis(x, order, 0).mean(0)


def sign_majority(rows: np.ndarray, reference: np.ndarray, step: float) -> np.ndarray:
    """r + step · sign(Σ sign(x_i − r))."""
    r = np.asarray(reference, np.float64)
    return r + np.float32(step) * np.sign(np.sign(np.asarray(rows, np.float64) - r).sum(0))
