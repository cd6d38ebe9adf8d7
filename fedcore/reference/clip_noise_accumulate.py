"""Definition of clip_noise_accumulate.

    y_k = round( ((Σ_i RN(s_i · x_ik)) + z_k) · g / divisor ),   ties to even inside RN

s_i are the scales of fedcore/reference/clip_round.py, so each row's part is what clip_round gives; z is integer noise
in steps of the grid g, a power of two. Sums of integers have no order: every backend, ISA and thread count gives the
same. Sum and noise are below 2⁵⁰ each, so everything before the division is exact in fp64, and there is one rounding to
the output dtype. Rows of scale 0 are not read.
"""

from __future__ import annotations

import numpy as np

from fedcore.dtypes import name_of, round_from_float64, to_float64
from fedcore.rowtable import RowTable

TILE = 1 << 16
MOST = 1 << 50


def clip_noise_accumulate(
    rows: RowTable,
    scales: np.ndarray,
    grid: float,
    noise: np.ndarray | None,
    divisor: float | None,
    out: np.ndarray,
    threads: int = 1,
) -> bool:
    """Write y into `out` (d,); scales (n,) fp64, noise (d,) int64 or None.

    Returns True if a noise is not from −2**50 to 2**50 − 1, or an output is not finite.
    """
    dtype, suspect = name_of(out.dtype), False
    counted = np.flatnonzero(scales).tolist()
    for start in range(0, rows.d, TILE):
        stop = min(start + TILE, rows.d)
        total = np.zeros(stop - start, np.int64)
        for i in counted:
            total += np.rint(scales[i] * to_float64(rows.columns(i, start, stop))).astype(np.int64)
        if noise is not None:
            drawn = noise[start:stop]
            suspect |= bool(((drawn < -MOST) | (drawn >= MOST)).any())
            total += drawn
        values = total.astype(np.float64) * grid
        if divisor is not None:
            values /= divisor
        with np.errstate(over="ignore"):
            out[start:stop] = rounded = round_from_float64(values, dtype)
        suspect |= not np.isfinite(to_float64(rounded)).all()
    return suspect
