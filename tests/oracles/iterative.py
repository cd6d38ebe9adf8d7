"""What each iterative rule means, in a few lines of NumPy in fp64 on a ready matrix."""

from __future__ import annotations

import numpy as np


def distance_sum(rows: np.ndarray, z: np.ndarray) -> float:
    """Σ ‖x_i − z‖."""
    return float(np.linalg.norm(rows - z, axis=1).sum())


def geometric_median(rows: np.ndarray, steps: int = 20_000) -> np.ndarray:
    """Weiszfeld from the mean on the rows themselves, or the row that beats every neighbour of the result."""
    x = np.asarray(rows, np.float64)
    z = x.mean(0)
    for _ in range(steps):
        w = 1 / np.maximum(np.linalg.norm(x - z, axis=1), 1e-12)
        z = w @ x / w.sum()
    return min([z, *x], key=lambda point: distance_sum(x, point))


def smoothed_geometric_median(rows: np.ndarray, start: np.ndarray, smoothing: float, steps: int) -> np.ndarray:
    """ByzFL's form: z ← Σ x_i / max(ν, ‖x_i − z‖) / Σ 1 / max(ν, ‖x_i − z‖)."""
    x, z = np.asarray(rows, np.float64), np.asarray(start, np.float64)
    for _ in range(steps):
        w = 1 / np.maximum(np.linalg.norm(x - z, axis=1), smoothing)
        z = w @ x / w.sum()
    return z


def centered_clipping(rows: np.ndarray, center: np.ndarray, radius: float, iterations: int) -> np.ndarray:
    """v ← v + mean of (x_i − v) min(1, τ / ‖x_i − v‖)."""
    x, v = np.asarray(rows, np.float64), np.asarray(center, np.float64)
    for _ in range(iterations):
        change = x - v
        norms = np.linalg.norm(change, axis=1)
        v = v + (change * np.minimum(1, radius / np.maximum(norms, 1e-300))[:, None]).mean(0)
    return v


def fltrust(rows: np.ndarray, reference: np.ndarray, server: np.ndarray) -> np.ndarray:
    """r + Σ t_i ‖g_0‖ / ‖g_i‖ g_i / Σ t_i, t_i = max(0, cos(g_i, g_0))."""
    g, g0 = np.asarray(rows, np.float64) - reference, np.asarray(server, np.float64) - reference
    norms, length = np.linalg.norm(g, axis=1), np.linalg.norm(g0)
    trust = np.maximum(0, g @ g0 / (norms * length))
    if not trust.any():
        return np.asarray(reference, np.float64)
    return reference + (trust * length / norms) @ g / trust.sum()


def spectral_filter(rows: np.ndarray, f: int) -> tuple[np.ndarray, float]:
    """CAF with the first right singular vector of √c (X − μ) at each step: the mean, and its covariance's first
    eigenvalue."""
    x = np.asarray(rows, np.float64)
    n, c = len(x), np.ones(len(rows))
    least, best = np.inf, x.mean(0)
    while True:
        mean = c @ x / c.sum()
        _, s, v = np.linalg.svd(np.sqrt(c / c.sum())[:, None] * (x - mean), full_matrices=False)
        if s[0] ** 2 < least:
            least, best = s[0] ** 2, mean
        tau = np.where(c > 0, ((x - mean) @ v[0]) ** 2, 0)
        c = c * (1 - tau / tau.max())
        if c.sum() <= n - 2 * f:
            return best, float(least)


def adaptively_clipped(rows: np.ndarray, reference: np.ndarray, f: int) -> np.ndarray:
    """ARC: the ⌊2 f/n (n − f)⌋ longest changes brought to the length of the next one."""
    change = np.asarray(rows, np.float64) - reference
    norms, n = np.linalg.norm(change, axis=1), len(rows)
    bound = np.sort(norms)[::-1][2 * f * (n - f) // n]
    return reference + change * np.minimum(1, bound / np.maximum(norms, 1e-300))[:, None]
