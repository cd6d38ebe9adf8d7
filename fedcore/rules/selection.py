"""Certified selection: the smallest of what is known by intervals, as distances formed directly in fp64 would have it.

The Gram gives each squared distance as an interval, so a score made of them is one too. Rows whose intervals leave
their place open are scored again from redone distances, which decide. Rows that are equal have equal scores: between
them the lowest row comes first and nothing is redone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedcore.rules.distances import Distances
from fedcore.rules.geometry import Geometry
from fedcore.rules.statistics import UNIT

#: how many parts the pairs of rows in doubt are formed again in: what is settled after one needs no other
PARTS = 4


class Scoring(NamedTuple):
    """A score: the sum of the `neighbors` smallest squared distances to other rows, or their mean."""

    neighbors: int
    mean: bool


@dataclass(frozen=True)
class Selection:
    """rows: the selected, ascending; scores (clients,) fp64, as sharp as they had to be; redone: pairs formed again."""

    rows: list[int]
    scores: np.ndarray
    redone: int


def select(geometry: Geometry, scoring: Scoring, count: int) -> Selection:
    """The `count` rows with the smallest scores; ties go to the lowest row."""
    distances, before = Distances(geometry), geometry.redone
    low, high = _score_intervals(distances.lower, distances.upper, scoring)
    inside, open_rows = settle(low, high, count, distances.same)
    if open_rows.size:
        distances.find_equal(open_rows)
        inside, open_rows = settle(low, high, count, distances.same)
    for part in range(PARTS):
        if open_rows.size:
            distances.redo(_sharpening(distances, scoring, np.unique(distances.same[open_rows]), PARTS - part))
            low, high = _score_intervals(distances.lower, distances.upper, scoring)
            inside, open_rows = settle(low, high, count, distances.same)
    scores = (low + high) / 2
    if open_rows.size:
        first, back = np.unique(distances.same[open_rows], return_inverse=True)
        low, high, score = (found[back] for found in _rescored(distances, scoring, first))
        scores[open_rows] = score
        inside = np.concatenate((inside, open_rows[lowest(score, low, high, count - len(inside))]))
    return Selection(sorted(int(row) for row in inside), scores, geometry.redone - before)


def nearest(geometry: Geometry, count: int) -> tuple[np.ndarray, int]:
    """(mask (n, n): the `count` nearest others of each row, ties to the lowest; pairs redone). count < n."""
    distances, before = Distances(geometry), geometry.redone
    inside, open_pairs = _settle_rows(distances, count)
    if open_pairs.any():
        distances.find_equal(np.flatnonzero(open_pairs.any(0)))
        inside, open_pairs = _settle_rows(distances, count)
    distances.redo(open_pairs)
    for i in np.flatnonzero(open_pairs.any(1)):
        among = np.flatnonzero(open_pairs[i])
        value, error = distances.value[i, among], distances.error[i, among]
        chosen = lowest(value, np.maximum(value - error, 0), value + error, count - int(inside[i].sum()))
        inside[i, among[chosen]] = True
    return inside, geometry.redone - before


def nearest_to(geometry: Geometry, row: int, count: int) -> tuple[list[int], np.ndarray, int]:
    """(the `count` clients nearest to a row, itself first if it is one, ascending; (clients,) squares; pairs redone).

    Ties go to the lowest row.
    """
    before = geometry.redone
    value, error, final = geometry.squared_distances_to(row)
    others = np.flatnonzero(np.arange(geometry.clients) != row)
    count -= geometry.clients - len(others)
    low, high = np.maximum(value - error, 0.0), value + error
    inside, open_rows = (others[places] for places in settle(low[others], high[others], count, geometry.same[others]))
    if open_rows.size and not final:
        value[open_rows], error[open_rows] = geometry.redo(np.column_stack((open_rows, np.full(len(open_rows), row))))
        low, high = np.maximum(value - error, 0.0), value + error
    chosen = open_rows[lowest(value[open_rows], low[open_rows], high[open_rows], count - len(inside))]
    rows = {*inside.tolist(), *chosen.tolist()} | ({row} if row < geometry.clients else set())
    return sorted(rows), value, geometry.redone - before


def _settle_rows(distances: Distances, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks (n, n): what is certainly among the `count` nearest others of each row, and what may be."""
    n = distances.size
    inside, open_pairs = np.zeros((n, n), bool), np.zeros((n, n), bool)
    for i in range(n):
        others = np.delete(np.arange(n), i)
        low, high = distances.lower[i, others], distances.upper[i, others]
        certain, maybe = settle(low, high, count, distances.same[others])
        inside[i, others[certain]], open_pairs[i, others[maybe]] = True, True
    return inside, open_pairs


def scores_of(distances: np.ndarray, scoring: Scoring) -> np.ndarray:
    """(m,) fp64 scores of (m, others) squared distances: the smallest, added in ascending order."""
    if scoring.neighbors == 0:
        return np.zeros(len(distances))
    nearest_ones = np.sort(distances, axis=1)[:, : scoring.neighbors]
    # cumsum adds strictly in order, where sum adds in pairs
    total = np.cumsum(nearest_ones, axis=1)[:, -1]
    return total / scoring.neighbors if scoring.mean else total


def settle(low: np.ndarray, high: np.ndarray, count: int, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places certainly among the `count` smallest, places that may be): those in neither are certainly not.

    Places with one number in `same` hold equal values, and the lowest of them comes first.
    """
    # where a place comes among its equals, and how many of them come after it
    earlier, later = np.zeros((2, len(same)), int)
    if len(set(same.tolist())) < len(same):
        order = np.argsort(same, kind="stable")
        _, start, number = np.unique(same[order], return_index=True, return_counts=True)
        earlier[order] = np.arange(len(same)) - np.repeat(start, number)
        later[order] = np.repeat(number, number) - 1 - earlier[order]
    maybe_before = np.searchsorted(np.sort(low), high, side="right") - 1 - later
    certainly_before = np.searchsorted(np.sort(high), low, side="left") + earlier
    inside = maybe_before < count
    return np.flatnonzero(inside), np.flatnonzero(~inside & (certainly_before < count))


def lowest(scores: np.ndarray, low: np.ndarray, high: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` smallest: again and again the lowest place that ties with the smallest score.

    Two scores tie where they are as near as the sharper of the two intervals is wide, so that a row gains nothing by an
    interval of its own that is wide; with exact scores that is equality. All else goes by the scores themselves.
    """
    half = np.maximum(high - scores, scores - low)
    if not half.any():
        return np.argsort(scores, kind="stable")[:count]
    remaining, chosen = list(range(len(scores))), []
    for _ in range(count):
        best = min(remaining, key=lambda i: scores[i])
        first = next(i for i in remaining if scores[i] - scores[best] <= 2 * min(half[i], half[best]))
        chosen.append(first)
        remaining.remove(first)
    return np.array(chosen, int)


def _others(matrix: np.ndarray) -> np.ndarray:
    """(n, n − 1): each row without its diagonal element."""
    n = len(matrix)
    return matrix[~np.eye(n, dtype=bool)].reshape(n, n - 1)


def _score_intervals(lower: np.ndarray, upper: np.ndarray, scoring: Scoring) -> tuple[np.ndarray, np.ndarray]:
    """Score bounds: the sum of the k smallest grows with every distance; (k + 2) roundings are allowed for."""
    slack = (scoring.neighbors + 2) * UNIT
    return scores_of(_others(lower), scoring) * (1 - slack), scores_of(_others(upper), scoring) * (1 + slack)


def _within_reach(distances: Distances, neighbors: int, rows: np.ndarray) -> np.ndarray:
    """(n, n) pairs of `rows` with others that may be among their `neighbors` nearest, 1 or more."""
    wanted = np.zeros((distances.size, distances.size), bool)
    reach = np.sort(_others(distances.upper), axis=1)[rows, neighbors - 1]
    wanted[rows] = distances.lower[rows] <= reach[:, None]
    wanted[rows, rows] = False
    return wanted


def _sharpening(distances: Distances, scoring: Scoring, rows: np.ndarray, parts: int) -> np.ndarray:
    """Of the pairs that the scores of `rows` rest on, those that make up 1 / `parts` of what is not known of them.

    All rows get the same others, the least known first, so that a pass over the data reads few rows for many pairs.
    """
    if scoring.neighbors == 0:
        return np.zeros((distances.size, distances.size), bool)
    wanted = _within_reach(distances, scoring.neighbors, rows)
    unknown = np.where(wanted, distances.upper - distances.lower, 0.0).sum(0)
    order = np.argsort(-unknown, kind="stable")
    before = np.cumsum(unknown[order]) - unknown[order]
    wanted[:, order[before * parts >= unknown.sum()]] = False
    return wanted


def _rescored(distances: Distances, scoring: Scoring, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score bounds and scores of `rows` from redone distances, skipping pairs that cannot be among the k nearest."""
    k = scoring.neighbors
    if k == 0:
        return np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(len(rows))
    wanted = _within_reach(distances, k, rows)
    distances.redo(wanted)
    value, error = distances.value[rows], distances.error[rows]
    near = [np.where(wanted[rows], found, np.inf) for found in (np.maximum(value - error, 0), value + error, value)]
    low, high, scores = (scores_of(found, scoring) for found in near)
    if not error[wanted[rows]].any():
        return scores, scores, scores
    slack = (k + 2) * UNIT
    return low * (1 - slack), high * (1 + slack), scores
