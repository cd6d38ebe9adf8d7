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
    rows that several hold: the reference alone after a clip, none after bucketing, all after nearest-neighbour mixing.
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
        both = np.empty((len(others), 2))
        for start in range(0, len(others), CACHED_ROWS):
            block = slice(start, start + CACHED_ROWS)
            np.matmul(np.abs(self._shared[others[block]] - self._shared[a]), self._weights, out=both[block])
        both += np.where((others == a)[:, None], 0.0, self._own[others] + self._own[a])
        error = both[:, 0] * both[:, 1]
        error += (2 * self._columns + 8) * UNIT * np.square(self._size[a] + self._size[others])
        return error, self.slack(a, others)

    def slack(self, a: Any, b: Any) -> Any:
        """How far a redo of mixtures a and b is off, as a norm: the rounding of Σ v_k x_k, and what v misses of 0."""
        reach = self._size + self._beyond
        return (4 * self._columns + 8) * UNIT * (reach[a] + reach[b])
