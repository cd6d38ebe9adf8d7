"""Definition of weighted_sum.

    y_k = round( (Σ_i fp64(w_i) · fp64(x_ik)) / divisor ),   i in row order, from 0.0, rows with w_i = 0 not read

w_i is an fp32 value and x_ik has at most 24 significant bits, so each product is exact in fp64 and a fused multiply-add
changes nothing: the order of additions alone fixes the bits. The one rounding is to nearest even, straight from fp64 to
the output dtype. Error: n − 1 fp64 additions, one division, one rounding.
"""

from __future__ import annotations

import numpy as np

from fedcore.dtypes import name_of, round_from_float64, to_float64
from fedcore.rowtable import RowTable

TILE = 1 << 16


def weighted_sum(rows: RowTable, weights: np.ndarray, divisor: float | None, out: np.ndarray, threads: int = 1) -> bool:
    """Write Σ w_i x_i into `out` (d,); weights (n,) fp32. Returns True if any output is not finite."""
    dtype, suspect = name_of(out.dtype), False
    counted = np.flatnonzero(weights)
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, rows.d, TILE):
            stop = min(start + TILE, rows.d)
            total = np.zeros(stop - start, np.float64)
            for i in counted.tolist():
                total += np.float64(weights[i]) * to_float64(rows.columns(i, start, stop))
            if divisor is not None:
                total /= divisor
            out[start:stop] = rounded = round_from_float64(total, dtype)
            suspect |= not np.isfinite(to_float64(rounded)).all()
    return suspect
