"""The noise of a run whose rounds take part of it back, row after row, from counters of one key."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedcore.privacy.factorization import UNIT, Factor
from fedcore.privacy.noise import draw

#: columns of a noise row that are made at a time
TILE = 1 << 18


class NoiseRows:
    """e_t of a run (`fedcore.privacy.Correlated`), (size,) int64 each, from one key.

    Row after row, or from the start again where one was left out.
    """

    def __init__(self, factor: Factor, size: int, deviation: float, key: bytes, stream: str):
        self._factor, self._size, self.made_from = factor, size, (deviation, key, stream)
        self._kept = np.zeros((factor.bands - 1, size), np.int64)  # row t at t modulo their number
        self._next = 0

    def row(self, t: int, inputs: Sequence[str]) -> np.ndarray:
        """e_t, for the inputs of rounds 0 to t.

        Each row has a key of its own inputs: a file of rounds that was put back to an earlier state and goes on with
        other inputs draws other noise. Columns do not depend on each other, so that rows before it take a tile of
        memory and no more.
        """
        # an interrupt leaves tiles of different rows in what is kept: until the loop ends none of it counts
        first, self._next = (self._next if t >= self._next else 0), 0
        found = np.empty(self._size, np.int64)
        for start in range(0, self._size, TILE):
            for u in range(first, t + 1):
                part = found[start : start + TILE]
                part[:] = self._part(u, start, len(part), inputs[u])
                if len(self._kept):
                    self._kept[u % len(self._kept), start : start + TILE] = part
        self._next = t + 1
        return found

    def _part(self, t: int, start: int, count: int, inputs: str) -> np.ndarray:
        deviation, key, stream = self.made_from
        total = draw(count, deviation, key, f"correlated row {t} of {inputs}", start, stream)
        for k, c in enumerate(self._factor.coefficients[1 : t + 1], 1):
            total -= c * self._kept[(t - k) % len(self._kept), start : start + count]
        return (total + UNIT // 2) // UNIT
