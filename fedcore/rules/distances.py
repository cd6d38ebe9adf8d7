"""Squared distances that become as sharp as a decision needs: intervals first, redone values where it asks for them."""

from __future__ import annotations

import numpy as np

from fedcore.rules.geometry import Geometry


class Distances:
    """Squared distances between the n rows of a geometry.

    lower, upper   (n, n) fp64 bounds; the diagonal is 0
    value          (n, n) fp64: the redone distance where a pair was redone, else the middle of its interval
    error          (n, n) fp64 bounds of redone values; 0 where a redo is exact, and for pairs that were not redone
    settled        (n, n) pairs that a redo would not make sharper
    same           (n,) the lowest row known to be equal to each: the same mixture, or at a redone distance of exactly 0
    """

    def __init__(self, geometry: Geometry):
        self._geometry = geometry
        self.lower, self.upper = geometry.intervals()
        self.value = self.lower + (self.upper - self.lower) / 2
        self.error = np.zeros_like(self.lower)
        self.same = geometry.same.copy()
        self.settled = self.lower == self.upper
        self._join(*np.nonzero(np.triu(self.upper == 0, 1)))

    @property
    def size(self) -> int:
        """How many rows there are."""
        return len(self.same)

    @property
    def redone(self) -> int:
        """Pairs that have been redone for this cohort."""
        return self._geometry.redone

    def redo(self, wanted: np.ndarray) -> None:
        """Redo the pairs of a mask (n, n) that are not settled; of rows known to be equal only one is formed."""
        one, other = np.nonzero(np.triu(wanted | wanted.T, 1) & ~self.settled)
        if not len(one):
            return
        n = self.size
        a, b = self.same[one], self.same[other]
        keys, back = np.unique(np.minimum(a, b) * n + np.maximum(a, b), return_inverse=True)
        first, second = keys // n, keys % n
        value, error = self.value[first, second], self.error[first, second]
        fresh = ~self.settled[first, second]
        pairs = np.column_stack((first[fresh], second[fresh]))
        if len(pairs):
            value[fresh], error[fresh] = self._geometry.redo(pairs)
        self._put(one, other, value[back], error[back])
        self._put(first, second, value, error)
        equal = (value == 0) & (error == 0)
        self._join(first[equal], second[equal])

    def find_equal(self, rows: np.ndarray) -> None:
        """Find which of `rows` are equal, by a redo of each with the first that it may equal: at most one pair a row.

        Attackers who send one row many times tie with each other everywhere; known to be equal, they are in no doubt.
        """
        wanted = np.zeros((self.size, self.size), bool)
        wanted[self.may_equal(rows)] = True
        self.redo(wanted)

    def may_equal(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each of `rows` that may equal an earlier one, as pairs with the first that it may; none that is settled."""
        rows = np.unique(self.same[rows])
        may = np.triu(self.lower[np.ix_(rows, rows)] == 0, 1)
        seconds = np.flatnonzero(may.any(0))
        one, other = rows[may.argmax(0)[seconds]], rows[seconds]
        fresh = ~self.settled[one, other]
        return one[fresh], other[fresh]

    def _put(self, one: np.ndarray, other: np.ndarray, value: np.ndarray, error: np.ndarray) -> None:
        for i, j in ((one, other), (other, one)):
            self.value[i, j], self.error[i, j] = value, error
            self.lower[i, j], self.upper[i, j] = np.maximum(value - error, 0.0), value + error
            self.settled[i, j] = True

    def _join(self, one: np.ndarray, other: np.ndarray) -> None:
        for i, j in zip(one.tolist(), other.tolist(), strict=True):
            a, b = self.same[i], self.same[j]
            if a != b:
                self.same[self.same == max(a, b)] = min(a, b)
