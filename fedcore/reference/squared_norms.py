"""Definition of squared_norms.

    ‖x_i − c‖² = Σ_k (fp64(x_ik) − fp64(c_k))²

Columns are cut into blocks of BLOCK by absolute column. Inside a block column k belongs to lane k mod LANES; each lane
starts at 0.0 and adds its squares in column order, a product and then an addition, each rounded to fp64. The lanes are
folded in halves (lane l takes lane l + 16, then l + 8, 4, 2, 1), and a row's blocks are added in order. Without a
centre each square is exact. All of it is fixed by the columns alone, so every backend, ISA and thread count gives the
same bits. Relative error without a centre: under (BLOCK / LANES + 5 + blocks) · 2⁻⁵³.
"""

from __future__ import annotations

import numpy as np

from fedcore.dtypes import to_float64
from fedcore.rowtable import RowTable

BLOCK = 4096
LANES = 32


def squared_norms(
    rows: RowTable, center: RowTable | None = None, threads: int = 1, total: np.ndarray | None = None
) -> np.ndarray:
    """(n,) fp64; `center` is a table of one row with the same columns. Not finite where the row is not.

    total   (n,) fp64 of the columns before: added to in place and returned. Tiles of columns whose widths are multiples
            of 8192 give the bits of one pass.
    """
    if total is None:
        total = np.zeros(rows.n, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, rows.d, BLOCK):
            stop = min(start + BLOCK, rows.d)
            middle = None if center is None else to_float64(center.columns(0, start, stop))
            for i in range(rows.n):
                values = np.zeros(-(-(stop - start) // LANES) * LANES)
                values[: stop - start] = to_float64(rows.columns(i, start, stop))
                if middle is not None:
                    values[: stop - start] -= middle
                lanes = np.zeros(LANES)
                for step in (values * values).reshape(-1, LANES):
                    lanes += step
                width = LANES // 2
                while width:
                    lanes = lanes[:width] + lanes[width:]
                    width //= 2
                total[i] += lanes[0]
    return total
