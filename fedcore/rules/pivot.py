"""The pivot: the row at which a Gram is centred.

Errors of a distance grow with how far its two rows lie from the pivot, so it should lie among the many. It is the row
with the least median distance to the others on a fixed sample of columns: a minority far away cannot become it. It
affects speed and the size of error bounds, never a decision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

#: (start, stop) of stretches of columns
Blocks = Sequence[tuple[int, int]]

BLOCKS = 16
#: columns of a block at most, and at least where rows are many: their products stay below PRODUCTS
BLOCK, NARROWEST, PRODUCTS = 256, 16, 1 << 24
#: multiply-adds of a product that OpenBLAS leaves to one thread: its threads, once woken, spin for some 20 ms on the
#: cores that the pass over the data is about to use
ONE_THREAD = 1 << 18


def sampled_columns(rows: int, d: int) -> Blocks:
    """(start, stop) of BLOCKS blocks of columns, evenly spaced over d; all columns if there are no more."""
    width = max(NARROWEST, min(BLOCK, PRODUCTS // (BLOCKS * rows**2)))
    if d <= BLOCKS * width:
        return [(0, d)]
    return [(start, start + width) for start in (k * (d - width) // (BLOCKS - 1) for k in range(BLOCKS))]


def choose_pivot(rows: int, d: int, columns: Callable[[Blocks], np.ndarray]) -> int:
    """The pivot's row number; `columns(blocks)` gives those of blocks (start, stop) of all rows, joined, in fp64."""
    if rows < 3:
        return 0
    blocks = sampled_columns(rows, d)
    with np.errstate(invalid="ignore", over="ignore"):
        inner = _gram(columns(blocks))
        square = inner.diagonal()
        distance = square[:, None] + square[None, :]
        inner *= 2
        distance -= inner
    distance[np.isnan(distance)] = np.inf
    np.fill_diagonal(distance, -np.inf)
    # the diagonal is the least, so this is the middle of the others (the lower one of two)
    distance.partition(rows // 2, axis=1)
    return int(np.argmin(distance[:, rows // 2]))


def _gram(sample: np.ndarray) -> np.ndarray:
    """sample · sampleᵀ, some columns at a time where that is little work."""
    rows, columns = sample.shape
    step = ONE_THREAD // rows**2
    if step < BLOCKS:
        return sample @ sample.T
    found = np.zeros((rows, rows))
    for start in range(0, columns, step):
        part = sample[:, start : start + step]
        found += part @ part.T
    return found
