"""What each rule that selects means, in a few lines of NumPy in fp64 on a ready matrix, by search where it can."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from tests.oracles.order import mean_around_median
from tests.oracles.rules import squared_distances


def bulyan_rows(rows: np.ndarray, f: int) -> list[int]:
    """n − 2f times: Krum on the rows that are left, with max(1, m − f − 2) neighbours among m; in order of choice."""
    distances, left, chosen = squared_distances(rows), list(range(len(rows))), []
    for _ in range(len(rows) - 2 * f):
        k = max(1, len(left) - f - 2)
        nearest = [np.sort([distances[i, j] for j in left if j != i])[:k] for i in left]
        scores = [np.cumsum(row)[-1] if len(row) else 0.0 for row in nearest]
        chosen.append(left.pop(int(np.argmin(scores))))
    return chosen


def bulyan(rows: np.ndarray, f: int) -> np.ndarray:
    """Of the chosen rows, in each coordinate the mean of the θ − 2f values closest to the median; ties: the smaller."""
    return mean_around_median(np.asarray(rows)[bulyan_rows(rows, f)], 2 * f)


def neighborhoods(rows: np.ndarray, f: int) -> list[list[int]]:
    """Each row and its n − f − 1 nearest others, ties to the lowest."""
    distances = squared_distances(rows)
    np.fill_diagonal(distances, -1)
    return [sorted(np.argsort(row, kind="stable")[: len(rows) - f].tolist()) for row in distances]


def mixed(rows: np.ndarray, f: int) -> np.ndarray:
    """Nearest-neighbour mixing: the mean of each neighbourhood."""
    return np.array([np.asarray(rows, np.float64)[near].mean(0) for near in neighborhoods(rows, f)])


def bucketed(rows: np.ndarray, order: list[int], s: int) -> np.ndarray:
    """Bucketing: the means of s rows after each other in that order."""
    x = np.asarray(rows, np.float64)
    return np.array([x[order[start : start + s]].mean(0) for start in range(0, len(x), s)])


def least_diameter_rows(rows: np.ndarray, f: int) -> list[int]:
    """The first set of n − f rows, in lexicographic order, of those with the least largest distance."""
    distances, kept = squared_distances(rows), np.array(list(combinations(range(len(rows)), len(rows) - f)))
    diameters = distances[kept[:, :, None], kept[:, None, :]].max(axis=(1, 2))
    return kept[int(np.argmin(diameters))].tolist()


def nearest_rows(rows: np.ndarray, trusted: np.ndarray, f: int) -> list[int]:
    """The n − f rows nearest to a row, ties to the lowest."""
    x, t = np.asarray(rows, np.float64), np.asarray(trusted, np.float64)
    squares = [np.cumsum((row - t) ** 2)[-1] for row in x]
    return sorted(np.argsort(squares, kind="stable")[: len(x) - f].tolist())
