"""How far distances between mixtures can be off, from the bounds of the rows that they are mixtures of."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.rules.statistics import UNIT, Gram

#: mixtures that are compared with another at a time
CACHED_ROWS = 32


class MixtureBounds:
    """Bounds for mixtures m of the extended cohort, (mixtures, rows) fp64.

    A row that only one mixture holds adds the same to all its differences, so a pair costs as many steps as there are
    rows that several hold: the reference alone after a clip, none after bucketing, all after nearest-neighbour mixing;
    of all pairs at once those that are held alike cost a product of matrices.
    """

    def __init__(self, gram: Gram, mix: np.ndarray):
        sizes = np.abs(mix)
        #: Σ |m_k| ‖x_k − p‖ and Σ |m_k| ‖p‖ of each mixture
        self._size = sizes @ np.sqrt(gram.matrix.diagonal())
        self._beyond = sizes.sum(1) * gram.offset
        self._columns = mix.shape[1]
        # [1, e_k]
        weights = np.column_stack((np.ones(mix.shape[1]), gram.error))
        several = np.count_nonzero(mix, axis=0) > 1
        #: the rows that several hold, in each mixture, and their weights
        self._shared = mix if several.all() else mix[:, several]
        self._weights: np.ndarray = weights[several]
        sizes[:, several] = 0.0
        self._own = sizes @ weights

    def pairs(self, a: int, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(error, slack) of mixture a against each of `others`, for v = m_a − m_b.

        error   how far the Gram's squared distance can be off: ½ Σ |v_k||v_l| (e_k + e_l) = ‖v‖₁ Σ |v_k| e_k, and the
                rounding of the products
        """
        both = _apart(self._shared, a, others, self._weights)
        both += np.where((others == a)[:, None], 0.0, self._own[others] + self._own[a])
        error = both[:, 0] * both[:, 1]
        error += self._rounding(a, others)
        return error, self.slack(a, others)

    def every(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(error, slack) of every two of `rows`, as `pairs` has them but for rounding: (rows, rows) each, 0 for one.

        A column in which all that is not 0 is one w > 0, as each after nearest-neighbour mixing, takes no differences:
        with h = 1 where a mixture holds it and 0 elsewhere, |v| = w (h_a + h_b − 2 h_a h_b), so that such columns take
        two products of matrices.
        """
        shared = self._shared[rows]
        largest = shared.max(axis=0, initial=0.0)
        alike = ((shared == 0) | (shared == largest)).all(axis=0)
        held, others = shared[:, alike] != 0, shared[:, ~alike]
        del shared
        n = len(rows)
        both = np.zeros((2, n, n))
        for i in range(n if others.shape[1] else 0):
            both[:, i, i + 1 :] = _apart(others, i, np.arange(i + 1, n), self._weights[~alike]).T
        for found, own, weight in zip(both, self._own[rows].T, self._weights[alike].T, strict=True):
            found += found.T
            root = held * np.sqrt(largest[alike] * weight)
            common = root @ root.T
            sums = common.diagonal()
            # Each product of roots is off by 4 roundings of itself, and a sum of K by K − 1 more, in any order. So with
            # s for the sums and p ≤ min(s_a, s_b) for what two have in common, s_a + s_b − 2 p is off by at most
            # (K + 3) (s_a + s_b + 2 p) ≤ 2 (K + 3) (s_a + s_b) roundings; the rest of the room is for these few lines.
            total = sums[:, None] + sums
            common *= -2
            common += total
            np.maximum(common, 0.0, out=common)
            total *= (2 * held.shape[1] + 16) * UNIT
            common += total
            found += common
            found += own[:, None] + own
        error, slack = both[0], self.slack(rows[:, None], rows)
        error *= both[1]
        error += self._rounding(rows[:, None], rows)
        np.fill_diagonal(error, 0.0)
        np.fill_diagonal(slack, 0.0)
        return error, slack

    def _rounding(self, a: Any, b: Any) -> Any:
        """How far the products that give the squared distance of mixtures a and b round."""
        return (2 * self._columns + 8) * UNIT * np.square(self._size[a] + self._size[b])

    def slack(self, a: Any, b: Any) -> Any:
        """How far a redo of mixtures a and b is off, as a norm: the rounding of Σ v_k x_k, and what v misses of 0."""
        reach = self._size + self._beyond
        return (4 * self._columns + 8) * UNIT * (reach[a] + reach[b])


def _apart(values: np.ndarray, a: int, others: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ_k |values_ak − values_bk| weights_k for each b of `others`: (others, 2) for (columns, 2) weights."""
    found = np.empty((len(others), 2))
    for start in range(0, len(others), CACHED_ROWS):
        block = slice(start, start + CACHED_ROWS)
        np.matmul(np.abs(values[others[block]] - values[a]), weights, out=found[block])
    return found
