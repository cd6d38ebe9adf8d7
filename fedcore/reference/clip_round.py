"""Definition of clip_round, and of the scales that keep a rounded row inside its clip.

    q_k = RN(s · x_k),  ties to even,     s = min(1/g, (C/g − √d/2) · (1 − 2⁻²⁴) / ‖x‖), cut to 24 significant bits

C is the clip, g the grid (a power of two, at most 0.02 · C/√d), d the number of columns. A row that is not finite
counts as zeros. Then Σ q_k² ≤ (C/g)², in exact integers, for every row:

- s ‖x‖ ≤ C/g − √d/2 as real numbers. ‖x‖² comes from squared_norms, whose relative error for d ≤ 2⁴⁰ is below 2⁻²⁴·⁹
  (its squares are exact and all terms have one sign), so the root's is below 2⁻²⁵·⁸; C/g is exact; the root, the
  difference (√d/2 is at most 1/100 of C/g), the quotient and the product add less than 6 · 2⁻⁵³. All of it is less than
  the factor 1 − 2⁻²⁴ takes off. Cutting bits only makes s smaller. Where s = 1/g was the lesser, the same bound holds
  for it a fortiori.
- s has 24 bits and x_k has 24, so s · x_k is exact in fp64 and rounding it to an integer is the only rounding: it moves
  each entry by at most 1/2, the row by at most √d/2 in norm.
- By the triangle inequality ‖q‖ ≤ s ‖x‖ + √d/2 ≤ C/g. Neither a second look at the row nor a repair is needed.

The price: a row above C − g√d/2, which is at least 0.99 C, is scaled to that norm instead of C; its direction is kept,
which cutting each entry toward zero would not do, and rows below it are only rounded. Why such a bound matters: the
norm after plain rounding can exceed the clip, and with it what the noise was calibrated to (Kairouz, Liu and Steinke
2021, "The Distributed Discrete Gaussian Mechanism for Federated Learning", section 4, where rows that exceed a bound
after rounding are rounded anew).
"""

from __future__ import annotations

import numpy as np

from fedcore.dtypes import to_float64
from fedcore.rowtable import RowTable

TILE = 1 << 16
#: fp64 keeps 53 significant bits; these are those that a scale may not have
LOW_BITS = np.uint64((1 << 29) - 1)


def clip_scales(squared_norms: np.ndarray, clip: float, grid: float, d: int) -> np.ndarray:
    """The s of each row: (n,) fp64 from (n,) fp64 squared norms. 0 where a norm is not finite."""
    finite = np.isfinite(squared_norms)
    room = (clip / grid - np.sqrt(np.float64(d)) / 2) * (1 - 2.0**-24)
    with np.errstate(divide="ignore"):
        scales = room / np.sqrt(np.where(finite, squared_norms, 0.0))
    scales = np.minimum(scales, 1 / grid)
    return np.where(finite, (scales.view(np.uint64) & ~LOW_BITS).view(np.float64), 0.0)


def clip_round(row: RowTable, scale: float, out: np.ndarray, threads: int = 1) -> int:
    """Write q into `out` (d,) int32; `row` is a table of one finite row. Returns Σ q², exact."""
    squares = 0
    for start in range(0, row.d, TILE):
        stop = min(start + TILE, row.d)
        integers = np.rint(scale * to_float64(row.columns(0, start, stop))).astype(np.int64)
        out[start:stop] = integers
        squares += int((integers * integers).sum())
    return squares
