"""Definition of squared_distances, the oracle of certified selection.

    D_ij = Σ_k (y_ik − y_jk)²

from 0.0, columns in order, one difference, one product and one addition per column, each rounded to fp64: no Gram, no
cancellation. y are the rows in fp64, or mixtures of them: y_m = Σ_i mix_mi fp64(x_i), from 0.0, rows in order, one
product and one addition each. Of rows the relative error is under (d + 2) · 2⁻⁵³, and 0 exactly when they are equal; a
mixture rounds by (n + 1) · 2⁻⁵³ · Σ_i |mix_mi x_ik| besides.
"""

from __future__ import annotations

import numpy as np

from fedcore.dtypes import to_float64
from fedcore.rowtable import RowTable

#: columns of points at a time, and bytes of them at most
TILE, TILE_BYTES = 1 << 16, 1 << 23


def squared_distances(
    rows: RowTable,
    pairs: np.ndarray,
    threads: int = 1,
    total: np.ndarray | None = None,
    mix: np.ndarray | None = None,
) -> np.ndarray:
    """(m,) fp64 for pairs (m, 2) int64 of row numbers, or of rows of `mix` (mixtures, n) fp64.

    total   (m,) fp64 of the columns before: added to in place and returned. Tiles of columns give the bits of one pass.
    """
    if total is None:
        total = np.zeros(len(pairs), np.float64)
    used, index = np.unique(pairs, return_inverse=True)
    index = index.reshape(pairs.shape)
    width = max(min(TILE, TILE_BYTES // (8 * max(used.size, 1))), 1)
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, rows.d, width):
            stop = min(start + width, rows.d)
            if mix is None:
                points = [to_float64(rows.columns(int(i), start, stop)) for i in used]
            else:
                points = _mixtures(rows, mix[used], start, stop)
            for p, (i, j) in enumerate(index):
                difference = points[i] - points[j]
                # cumsum adds strictly in order, where sum adds in pairs
                total[p] = np.cumsum(np.concatenate(([total[p]], difference * difference)))[-1]
    return total


def _mixtures(rows: RowTable, mix: np.ndarray, start: int, stop: int) -> list[np.ndarray]:
    formed = [np.zeros(stop - start) for _ in mix]
    for i in np.flatnonzero(mix.any(axis=0)):
        row = to_float64(rows.columns(int(i), start, stop))
        for m in np.flatnonzero(mix[:, i]):
            formed[m] += mix[m, i] * row
    return formed
