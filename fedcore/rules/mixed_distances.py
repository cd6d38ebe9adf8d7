"""Squared distances of mixtures of rows, formed directly in fp64: NumPy, in blocks that stay in the cache."""

from __future__ import annotations

import numpy as np

from fedcore.dtypes import to_float64
from fedcore.rowtable import RowTable

#: columns of rows in fp64 at a time, bytes of those, and bytes of the differences of mixtures at a time
TILE, TILE_BYTES, BLOCK_BYTES = 1 << 14, 1 << 23, 1 << 20
#: bytes of all of them
SCRATCH = TILE_BYTES + BLOCK_BYTES + 8 * 3 * TILE


def mixed_rows(pairs: np.ndarray, mix: np.ndarray) -> np.ndarray:
    """The rows that some difference of a pair (m, 2) of mixtures holds, ascending."""
    held = np.zeros(mix.shape[1], bool)
    step = _block(mix.shape[1])
    for start in range(0, len(pairs), step):
        held |= _differences(pairs[start : start + step], mix).any(0)
    return np.flatnonzero(held)


def add_mixed_distances(table: RowTable, pairs: np.ndarray, mix: np.ndarray, total: np.ndarray) -> None:
    """total (m,) += Σ over columns of (Σ_k v_k x_k)², v = mix_a − mix_b: rows in order within a column, columns too.

    table, mix   the rows, and their coefficients (mixtures, rows) in fp64
    pairs        (m, 2) mixtures

    Each pair has the same bits whatever the tiles and blocks.
    """
    width = max(min(TILE, TILE_BYTES // (8 * max(table.n, 1))), 1)
    step = _block(mix.shape[1])
    for start in range(0, table.d, width):
        stop = min(start + width, table.d)
        tile = np.empty((table.n, stop - start))
        for i in range(table.n):
            tile[i] = to_float64(table.columns(i, start, stop))
        term, column = np.empty(stop - start), np.empty(stop - start + 1)
        formed = column[1:]
        for first in range(0, len(pairs), step):
            for p, v in enumerate(_differences(pairs[first : first + step], mix), first):
                formed[:] = 0.0
                for i in np.flatnonzero(v).tolist():
                    np.multiply(tile[i], v[i], out=term)
                    np.add(formed, term, out=formed)
                np.multiply(formed, formed, out=formed)
                column[0] = total[p]
                # cumsum adds strictly in order, where sum adds in pairs
                total[p] = np.cumsum(column, out=column)[-1]


def _block(rows: int) -> int:
    return max(BLOCK_BYTES // (8 * max(rows, 1)), 1)


def _differences(pairs: np.ndarray, mix: np.ndarray) -> np.ndarray:
    found: np.ndarray = mix[pairs[:, 0]]
    found -= mix[pairs[:, 1]]
    return found
