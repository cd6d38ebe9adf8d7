"""The attacks of the field in a few lines each, as the papers write them, in fp64."""

from __future__ import annotations

import math

import numpy as np


def phi(z: float) -> float:
    """The standard normal distribution function."""
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def alie(rows, z):
    """Baruch et al. 2019, Algorithm 1, column by column; the shift away from the mean's side of the majority."""
    return np.array([np.mean(column) - z * math.sqrt(np.sum((column - np.mean(column)) ** 2) / (len(column) - 1))
                     for column in np.asarray(rows, np.float64).T])  # fmt: skip


def mimicked(rows):
    """Karimireddy et al. 2022: z by power iteration on the covariance, then the row with the largest |<z, x>|."""
    x = np.asarray(rows, np.float64)
    centred = x - x.mean(0)
    z = centred[np.abs(centred).sum(1).argmax()]
    for _ in range(5000):
        z = centred.T @ (centred @ z)
        z /= np.linalg.norm(z)
    return int(np.abs(x @ z).argmax())


def shifted(rows, p, kind):
    """Shejwalkar and Houmansadr 2021, Algorithm 1: γ by halved steps, until they vanish; kind "max" or "sum"."""
    x = np.asarray(rows, np.float64)
    mean = x.mean(0)
    pairs = np.array([[np.sum((a - b) ** 2) for b in x] for a in x])
    bound = pairs.max() if kind == "max" else pairs.sum(1).max()
    gamma, step, best = 10.0, 10.0, 0.0
    while step > 1e-9:
        distances = np.array([np.sum((mean + gamma * p - a) ** 2) for a in x])
        step /= 2
        if (distances.max() if kind == "max" else distances.sum()) <= bound:
            best, gamma = gamma, gamma + step
        else:
            gamma -= step
    return mean + best * p
