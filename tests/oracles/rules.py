"""What each rule means, in a few lines of NumPy in fp64 on a ready matrix."""

from __future__ import annotations

import numpy as np


def squared_distances(rows: np.ndarray) -> np.ndarray:
    """(n, n) Σ (x_i − x_j)², columns in order."""
    x = np.asarray(rows, np.float64)
    return np.array([np.cumsum((x - row) ** 2, axis=1)[:, -1] for row in x])


def krum_scores(rows: np.ndarray, f: int, neighbors: str = "paper") -> np.ndarray:
    """(n,) sums of the smallest squared distances to others, in ascending order; means for 'byzfl'."""
    n = len(rows)
    k = n - f - 2 if neighbors == "paper" else n - f - 1
    distances = squared_distances(rows)
    nearest = [np.sort(np.delete(distances[i], i))[:k] for i in range(n)]
    scores = np.array([np.cumsum(row)[-1] if k else 0.0 for row in nearest])
    return scores / k if neighbors == "byzfl" and k else scores


def multi_krum_rows(rows: np.ndarray, f: int, m: int, neighbors: str = "paper") -> list[int]:
    """The m rows with the smallest scores, ties to the lowest row."""
    scores = krum_scores(rows, f, neighbors)
    return sorted(sorted(range(len(rows)), key=lambda i: (scores[i], i))[:m])


def weighted_mean(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ w x / Σ w."""
    w = np.asarray(weights, np.float64)
    return w @ np.asarray(rows, np.float64) / w.sum()


def clipped(rows: np.ndarray, reference: np.ndarray, max_norm: float) -> np.ndarray:
    """r + min(1, C / ‖x − r‖) (x − r)."""
    r = np.asarray(reference, np.float64)
    change = np.asarray(rows, np.float64) - r
    norms = np.linalg.norm(change, axis=1)
    return r + change * np.minimum(1, max_norm / np.maximum(norms, 1e-300))[:, None]
