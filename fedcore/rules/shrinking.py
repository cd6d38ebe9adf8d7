"""Certified Krum on a set that shrinks: the row with the smallest score is chosen and leaves, again and again.

Scores are sums of a row's k smallest squared distances to the rows that are left. They are kept up to date by what each
departure changes, O(n) a choice after one sort of the distances, as bounds; rows that the bounds cannot tell apart are
scored afresh, from redone distances added in ascending order, as the definition has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedcore.rules.distances import Distances
from fedcore.rules.geometry import Geometry
from fedcore.rules.selection import lowest
from fedcore.rules.statistics import UNIT

#: rows whose values are sorted at a time
SORTED_ROWS = 64
#: how often pairs in doubt are redone before all are
PASSES = 4


class ShrinkingSums:
    """Sums of each row's k smallest values in a matrix (n, n) over the rows that are left, itself not among them.

    sums     (n,) fp64
    doubt    (n,) how far each can be from the sum of its values in ascending order

    Each row's values are sorted once; places 1 to n in that order form a linked list from which rows that leave are
    taken out. Place 0 is its head, n + 1 its end, and a row's own place is the last.
    """

    def __init__(self, matrix: np.ndarray, k: int):
        n = len(matrix)
        self._k = k
        self.left = np.ones(n, bool)
        self._all = np.arange(n)
        self._values = np.full((n, n + 2), np.inf)
        # places fit 16 bits up to 32,765 rows: four matrices of them take what one of values does
        places = np.int16 if n + 2 < 1 << 15 else np.int32
        self._order, self._place = np.empty((n, n), places), np.empty((n, n), places)
        self._next, self._previous = np.empty((n, n + 2), places), np.empty((n, n + 2), places)
        self._last = np.empty(n, np.int64)
        self.sums, self.doubt = np.empty(n), np.empty(n)
        for start in range(0, n, SORTED_ROWS):
            self._sort(matrix, self._all[start : start + SORTED_ROWS])

    def _sort(self, matrix: np.ndarray, rows: np.ndarray) -> None:
        """Sort the values of `rows`, and add those that count in ascending order."""
        n, values = len(matrix), matrix[rows]
        values[np.arange(len(rows)), rows] = np.inf
        order = np.argsort(values, axis=1, kind="stable")
        self._order[rows], self._values[rows, 1:-1] = order, np.take_along_axis(values, order, axis=1)
        place = np.empty_like(order)
        np.put_along_axis(place, order, np.arange(1, n + 1)[None, :], axis=1)
        self._place[rows] = place
        self._next[rows], self._previous[rows] = np.arange(1, n + 3), np.arange(-1, n + 1)
        self._last[rows] = self._k
        self._set(rows, np.where(np.arange(n) < self._k, self._values[rows, 1:-1], 0.0))

    def afresh(self, rows: np.ndarray) -> None:
        """Add the values of `rows` that count in ascending order again; those that do not add zeros in between."""
        there = self.left[self._order[rows]]
        counted = there & (np.cumsum(there, axis=1) <= self._k)
        self._set(rows, np.where(counted, self._values[rows, 1:-1], 0.0))

    def _set(self, rows: np.ndarray, values: np.ndarray) -> None:
        self.sums[rows] = np.cumsum(values, axis=1)[:, -1]
        self.doubt[rows] = 2 * (self._k + 2) * UNIT * self.sums[rows]

    def reach(self, rows: np.ndarray) -> np.ndarray:
        """The largest value of each of `rows` that counts; needs k ≥ 1."""
        return self._values[rows, self._last[rows]]

    def leave(self, row: int, k: int) -> None:
        """`row` leaves; from now on k values count, at most one more or fewer than are left of those before."""
        every, place, before = self._all, self._place[:, row], self.sums.copy()
        previous, following = self._previous[every, place], self._next[every, place]
        self._next[every, previous], self._previous[every, following] = following, previous
        counted = place <= self._last
        self.sums -= np.where(counted, self._values[every, place], 0.0)
        self._last = np.where(self._last == place, previous, self._last)
        surplus = self._k - counted - k
        drop, add = np.flatnonzero(surplus > 0), np.flatnonzero(surplus < 0)
        self.sums[drop] -= self._values[drop, self._last[drop]]
        self._last[drop] = self._previous[drop, self._last[drop]]
        self._last[add] = self._next[add, self._last[add]]
        self.sums[add] += self._values[add, self._last[add]]
        self.left[row], self._k = False, k
        self.doubt += UNIT * (2 * before + self.sums)


class Attempt(NamedTuple):
    """The rows in the order of choice, their scores, and what the choices rest on.

    certain    how many choices, from the first one on, no redo can change
    doubtful   (n, n) pairs to redo for the others: without them a choice goes by the middle of what is known
    """

    chosen: list[int]
    scores: np.ndarray
    certain: int
    doubtful: np.ndarray


def choose_one_by_one(
    geometry: Geometry, neighbors: Callable[[int], int], count: int
) -> tuple[list[int], np.ndarray, int]:
    """Krum on the rows that are left, `count` times: (rows in the order of choice, their scores, pairs redone).

    neighbors   how many nearest others a score is of where m rows are left: at most m − 1, and as m falls by 1 it falls
                by at most 1 and never rises

    Ties go to the lowest row. A redo reads the data, so pairs are redone for all choices at a time: those that an
    attempt is in doubt of, which goes on as if it had chosen rightly, and it nearly always has. Where PASSES of them
    leave a choice open, one more takes all pairs of the rows that are left then.
    """
    distances, before = Distances(geometry), geometry.redone
    for _ in range(PASSES):
        attempt = _attempt(distances, neighbors, count)
        if attempt.certain == count:
            break
        distances.redo(attempt.doubtful)
    else:
        attempt = _attempt(distances, neighbors, count)
        if attempt.certain < count:
            left = np.ones(distances.size, bool)
            left[attempt.chosen[: attempt.certain]] = False
            distances.redo(left[:, None] & left)
            attempt = _attempt(distances, neighbors, count)
    return attempt.chosen, attempt.scores, geometry.redone - before


def _attempt(distances: Distances, neighbors: Callable[[int], int], count: int) -> Attempt:
    """All choices, by what is known of the distances."""
    k = neighbors(distances.size)
    low, high = ShrinkingSums(distances.lower, k), ShrinkingSums(distances.upper, k)
    chosen: list[int] = []
    scores, certain = np.empty(count), count
    doubtful = np.zeros((distances.size, distances.size), bool)
    for step in range(count):
        row, sure = _smallest(distances, low, high, k, doubtful)
        if not sure:
            certain = min(certain, step)
        scores[step] = (low.sums[row] + high.sums[row]) / 2
        chosen.append(row)
        if step + 1 < count:
            k = neighbors(distances.size - step - 1)
            low.leave(row, k)
            high.leave(row, k)
    return Attempt(chosen, scores, certain, doubtful)


def _smallest(
    distances: Distances, low: ShrinkingSums, high: ShrinkingSums, k: int, doubtful: np.ndarray
) -> tuple[int, bool]:
    """(the row with the smallest score among those that are left, ties to the lowest; whether that is certain).

    Where it is not, the pairs that stand in the way are added to the mask `doubtful`: those of rows that may be equal
    before any other, as equal rows need none.
    """
    left = np.flatnonzero(low.left)
    least = (high.sums + high.doubt)[left].min()
    rows = _without_equals(distances, left[(low.sums - low.doubt)[left] <= least])
    if len(rows) == 1:
        return int(rows[0]), True
    if k == 0:
        return int(rows.min()), True
    one, other = distances.may_equal(rows)
    wanted = low.left & (distances.lower[rows] <= high.reach(rows)[:, None]) & ~distances.settled[rows]
    if len(one) or wanted.any():
        if len(one):
            doubtful[one, other] = True
        else:
            doubtful[rows] |= wanted
        return int(rows[np.argmin((low.sums + high.sums)[rows])]), False
    for sums in (low, high):
        sums.afresh(rows)
    score = (low.sums[rows] + high.sums[rows]) / 2
    exact = not distances.error[rows].any()
    slack = 0.0 if exact else high.doubt[rows]
    return int(rows[lowest(score, low.sums[rows] - slack, high.sums[rows] + slack, 1)[0]]), True


def _without_equals(distances: Distances, rows: np.ndarray) -> np.ndarray:
    """The lowest of each set of equal rows, ascending."""
    return np.sort(rows[np.unique(distances.same[rows], return_index=True)[1]])
