"""The total order of order statistics, and sums along it.

Elements are ordered by integer keys of their bits, key(x) = b ^ ((b >> 31) & 0x7fffffff) for fp32 (b the bits as a
signed integer; 15 and 0x7fff for 16-bit types): the order of the numbers, with −0 below +0, and total, so that every
backend sorts alike whatever a comparison of floats would do with signed zeros or flushed subnormals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from fedcore.dtypes import name_of, round_from_float64, to_float64
from fedcore.rowtable import RowTable

TILE = 1 << 14


def sorted_columns(rows: RowTable) -> Iterator[tuple[int, int, np.ndarray]]:
    """(start, stop, (n, stop − start) fp64): tiles of columns, each column in ascending order of keys."""
    for start in range(0, rows.d, TILE):
        stop = min(start + TILE, rows.d)
        tile = np.stack([rows.columns(i, start, stop) for i in range(rows.n)])
        bits = tile.view(f"<i{tile.itemsize}")
        keys = bits ^ ((bits >> (8 * tile.itemsize - 1)) & np.iinfo(bits.dtype).max)
        yield start, stop, np.take_along_axis(to_float64(tile), np.argsort(keys, axis=0, kind="stable"), axis=0)


def order_statistic(rows: RowTable, out: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Write `statistic` of each sorted column into `out` (d,), rounded once, a zero as +0.

    Returns True if any element of the rows, or any output, is not finite.
    """
    dtype, suspect = name_of(out.dtype), False
    with np.errstate(invalid="ignore", over="ignore"):
        for start, stop, columns in sorted_columns(rows):
            suspect |= not np.isfinite(columns).all()
            # −0 + 0 is +0 and nothing else changes; a tiny result that rounds to −0 is caught after rounding
            rounded = round_from_float64(statistic(columns) + 0.0, dtype)
            values = to_float64(rounded)
            out[start:stop] = round_from_float64(np.where(values == 0, 0.0, values), dtype)
            suspect |= not np.isfinite(values).all()
    return suspect


def ascending_sum(columns: np.ndarray) -> np.ndarray:
    """(d,) fp64: each column added from 0.0, one row after the other."""
    total = np.zeros(columns.shape[1])
    for row in columns:
        total += row
    return total


def middle(columns: np.ndarray) -> np.ndarray:
    """(d,) fp64 medians of sorted columns: the middle value, or half the fp64 sum of the middle two."""
    n = len(columns)
    return columns[n // 2] if n % 2 else (columns[n // 2 - 1] + columns[n // 2]) / 2
