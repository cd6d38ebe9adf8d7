"""Definition of sign_counts.

    y_k = #{i : x_ik > c_k} − #{i : x_ik < c_k}

Elements are compared as numbers, exactly, whatever the dtypes of rows and centre: −0 equals +0, and a subnormal is not
zero. Integers: exact and the same on every backend.
"""

from __future__ import annotations

import numpy as np

from fedcore.dtypes import to_float64
from fedcore.rowtable import RowTable

TILE = 1 << 16


def sign_counts(rows: RowTable, center: RowTable | None, out: np.ndarray, threads: int = 1) -> bool:
    """Write the votes into `out` (d,) int32; `center` is a table of one row. True if any element is not finite."""
    suspect = False
    for start in range(0, rows.d, TILE):
        stop = min(start + TILE, rows.d)
        middle = np.zeros(stop - start) if center is None else to_float64(center.columns(0, start, stop))
        suspect |= not np.isfinite(middle).all()
        votes = np.zeros(stop - start, np.int32)
        for i in range(rows.n):
            values = to_float64(rows.columns(i, start, stop))
            suspect |= not np.isfinite(values).all()
            votes += (values > middle).astype(np.int32) - (values < middle).astype(np.int32)
        out[start:stop] = votes
    return suspect
