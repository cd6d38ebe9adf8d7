"""Certified selection: the rows with the smallest scores, as distances formed directly in fp64 would have it.

A row's score is the sum of its k smallest squared distances to others. The Gram gives each distance as an interval, so
each score is one too. Rows whose intervals leave their place open are scored again from redone distances, which decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedcore.rules.geometry import UNIT, Geometry


class Scoring(NamedTuple):
    """A score: the sum of the `neighbors` smallest squared distances to other rows, or their mean."""

    neighbors: int
    mean: bool


@dataclass(frozen=True)
class Selection:
    """rows: the selected, ascending; scores (clients,) fp64, exact where they had to be; redone: pairs formed again."""

    rows: list[int]
    scores: np.ndarray
    redone: int


def select(geometry: Geometry, scoring: Scoring, count: int) -> Selection:
    """The `count` rows with the smallest scores; ties go to the lowest row."""
    lower, upper = geometry.intervals()
    low, high = _score_intervals(lower, upper, scoring)
    before = geometry.redone
    inside, open_rows = _settle(low, high, count)
    scores = (low + high) / 2
    if open_rows.size:
        low, high, scores[open_rows] = _redo(geometry, scoring, lower, upper, open_rows)
        chosen = _lowest(scores[open_rows], low, high, count - len(inside))
        inside = np.concatenate((inside, open_rows[chosen]))
    return Selection(sorted(int(row) for row in inside), scores, geometry.redone - before)


def scores_of(distances: np.ndarray, scoring: Scoring) -> np.ndarray:
    """(m,) fp64 scores of (m, others) squared distances: the smallest, added in ascending order."""
    if scoring.neighbors == 0:
        return np.zeros(len(distances))
    nearest = np.sort(distances, axis=1)[:, : scoring.neighbors]
    # cumsum adds strictly in order, where sum adds in pairs
    total = np.cumsum(nearest, axis=1)[:, -1]
    return total / scoring.neighbors if scoring.mean else total


def _others(matrix: np.ndarray) -> np.ndarray:
    """(n, n − 1): each row without its diagonal element."""
    n = len(matrix)
    return matrix[~np.eye(n, dtype=bool)].reshape(n, n - 1)


def _score_intervals(lower: np.ndarray, upper: np.ndarray, scoring: Scoring) -> tuple[np.ndarray, np.ndarray]:
    """Score bounds: the sum of the k smallest grows with every distance; (k + 2) roundings are allowed for."""
    slack = (scoring.neighbors + 2) * UNIT
    return scores_of(_others(lower), scoring) * (1 - slack), scores_of(_others(upper), scoring) * (1 + slack)


def _settle(low: np.ndarray, high: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows that are certainly among the `count` smallest, rows that may be): those in neither are certainly not."""
    certainly_better = (high[None, :] < low[:, None]).sum(1)
    maybe_as_good = (low[None, :] <= high[:, None]).sum(1) - 1
    inside = maybe_as_good < count
    return np.flatnonzero(inside), np.flatnonzero(~inside & (certainly_better < count))


def _redo(
    geometry: Geometry, scoring: Scoring, lower: np.ndarray, upper: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score bounds and scores of `rows` from redone distances, skipping pairs that cannot be among the k nearest."""
    n, k = geometry.clients, scoring.neighbors
    if k == 0:
        return np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(len(rows))
    reach = np.sort(_others(upper), axis=1)[rows, k - 1]
    wanted = np.zeros((n, n), bool)
    wanted[rows] = lower[rows] <= reach[:, None]
    # an interval of one point needs no redo
    pairs = np.argwhere(np.triu(wanted | wanted.T, 1) & (upper > lower))
    value, error = geometry.redo(pairs) if len(pairs) else (np.empty(0), np.empty(0))
    distance, bound = np.where(wanted | wanted.T, lower, np.inf), np.zeros((n, n))
    for matrix, entries in ((distance, value), (bound, error)):
        matrix[pairs[:, 0], pairs[:, 1]] = matrix[pairs[:, 1], pairs[:, 0]] = entries
    scores = scores_of(_others(distance)[rows], scoring)
    if not error.any():
        return scores, scores, scores
    slack = (k + 2) * UNIT
    low = scores_of(_others(np.maximum(distance - bound, 0))[rows], scoring) * (1 - slack)
    return low, scores_of(_others(distance + bound)[rows], scoring) * (1 + slack), scores


def _lowest(scores: np.ndarray, low: np.ndarray, high: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` smallest: again and again the lowest row that ties with the smallest score.

    Two scores tie where they are as near as the sharper of the two intervals is wide, so that a row gains nothing by an
    interval of its own that is wide; with exact scores that is equality. All else goes by the scores themselves.
    """
    half = np.maximum(high - scores, scores - low)
    remaining, chosen = list(range(len(scores))), []
    for _ in range(count):
        best = min(remaining, key=lambda i: scores[i])
        first = next(i for i in remaining if scores[i] - scores[best] <= 2 * min(half[i], half[best]))
        chosen.append(first)
        remaining.remove(first)
    return np.array(chosen, int)
