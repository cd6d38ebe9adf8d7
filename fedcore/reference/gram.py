"""Definition of gram.

    G_ij = Σ_k (x_ik − c_k)(x_jk − c_k)

The reference forms differences and products in fp64. Compiled backends work on blocks of BLOCK columns fixed by
absolute column: a difference is rounded to fp32 once, each row of a block is scaled by a power of two when its largest
magnitude is outside [2⁻⁴⁰, 2⁴⁰] (so that squares neither overflow nor vanish), products are accumulated in fp32 in
column order with a fused multiply-add, and blocks are folded in fp64 in block order, chunk by chunk of CHUNK columns.

Error bound, for any backend: |Ĝ_ij − G_ij| ≤ EPSILON / 4 · (G_ii + G_jj), so for D_ij = G_ii + G_jj − 2 G_ij
|D̂_ij − D_ij| ≤ EPSILON · (G_ii + G_jj). With u = 2⁻²⁴: differences give 2u, BLOCK sequential fp32 additions give at
most BLOCK · u (Higham 2002, Accuracy and Stability of Numerical Algorithms, §3.1, with |x y| ≤ (x² + y²) / 2), folding
in fp64 less than u. The worst case is never met in practice: rounding errors of random sign give about 2⁻²⁴.
"""

from __future__ import annotations

import numpy as np

from fedcore.dtypes import to_float64
from fedcore.rowtable import RowTable

BLOCK = 256
CHUNK = 1 << 13
#: |D̂_ij − D_ij| ≤ EPSILON · (G_ii + G_jj), all backends
EPSILON = 4.0 * (BLOCK + 4) * 2.0**-24 / 2.0


def gram(rows: RowTable, center: RowTable | None = None, threads: int = 1) -> np.ndarray:
    """(n, n) fp64, symmetric; `center` is a table of one row. Row i is not finite on the diagonal if x_i is not."""
    total = np.zeros((rows.n, rows.n), np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, rows.d, CHUNK):
            stop = min(start + CHUNK, rows.d)
            tile = np.stack([to_float64(rows.columns(i, start, stop)) for i in range(rows.n)])
            if center is not None:
                tile -= to_float64(center.columns(0, start, stop))
            total += tile @ tile.T
    return total
