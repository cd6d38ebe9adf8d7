"""Definition of gram.

    G_ij = Σ_k (x_ik − c_k)(x_jk − c_k)

The reference forms differences and products in fp64. Compiled backends work on blocks of columns fixed by absolute
column: a difference is rounded to fp32 once, a block's products are summed, and blocks are folded in fp64 in block
order, chunk by chunk of CHUNK columns.

Error bound: |Ĝ_ij − G_ij| ≤ ε / 4 · (G_ii + G_jj), so for D_ij = G_ii + G_jj − 2 G_ij |D̂_ij − D_ij| ≤
ε · (G_ii + G_jj), with ε = EPSILON, or EPSILON_AMX on AMX. Below u = 2⁻²⁴, and |x y| ≤ (x² + y²) / 2 throughout.

fp32 sums (all but AMX): blocks of BLOCK columns. Each row of a block is scaled by a power of two when its largest
magnitude is outside [2⁻⁴⁰, 2⁴⁰] (so that squares neither overflow nor vanish). The products of column k of a block are
accumulated in chain k mod CHAINS, in fp32 in column order with a fused multiply-add; then neighbouring chains are
added, and their sums, until one is left: a dot product has its chains in the lanes of a vector. Differences give 2u, a
chain's additions at most (BLOCK / CHAINS) · u (Higham 2002, Accuracy and Stability of Numerical Algorithms, §3.1),
those of chains log₂(CHAINS) · u, folding in fp64 less than u: (BLOCK / CHAINS + log₂(CHAINS) + 4) · u / 2 in all. The
worst case is never met in practice: rounding errors of random sign give about 2⁻²⁴.

Integer sums (AMX): blocks of B = 512 columns. A row of a block, with largest magnitude P, is rounded to integers
v = round(x / t) with t = 2^(e − 22), where e is the exponent of P · (1 + 2⁻⁷): |v| < 127 · (1 + 256 + 256²) and
t ≤ 2^−21.98 · P. With v = 256² a + 256 b + c, digits in [−128, 127],

    v v' = 256⁴ aa' + 256³ (ab' + ba') + 256² (ac' + bb' + ca') + 256 (bc' + cb') + cc'.

cc' is left out; the others are summed over the block in 32-bit integers, exactly (Σ |ac' + bb' + ca'| < 2²⁵ is the
largest). The first two sums are joined (256 times one plus the other stays below 2³¹), and so are the last two, the
fourth rounded to a multiple of 256; the result times t t' is exact in fp64.
- Rounding x to v: at most t / 2 a column, so Σ |x y − x̂ ŷ| ≤ t/2 Σ|y| + t'/2 Σ|x| + B t t' / 4. With Σ|y| ≤ √B ‖y‖
  and P ≤ ‖x‖ that is at most 2^−22.98 · √B · 2 ‖x‖ ‖y‖ · (1 + 2⁻¹⁸) ≤ 2^−18.4 (G_ii + G_jj) < 50 u (G_ii + G_jj).
- Leaving out cc': B · 2¹⁴ · t t' ≤ 2²³ · 2^−43.96 · P P' ≤ 2^−21.9 (G_ii + G_jj) < 5 u (G_ii + G_jj). Rounding the
  fourth sum: 2¹⁵ t t' a block, less than u / 32.
- Differences and folding: less than 2 u (G_ii + G_jj).
That is under 57 u (G_ii + G_jj) in all. Nothing is flushed. The bits differ from those of
the fp32 sums, inside the bound.

With either, the bits of an entry depend on its two rows and the centre alone: not on the other rows, their order, or
the threads.
"""

from __future__ import annotations

from math import log2

import numpy as np

from fedcore.dtypes import to_float64
from fedcore.rowtable import RowTable

BLOCK = 256
CHAINS = 8
CHUNK = 1 << 13
#: |D̂_ij − D_ij| ≤ EPSILON · (G_ii + G_jj), on all backends and instruction sets but AMX
EPSILON = 4.0 * (BLOCK / CHAINS + log2(CHAINS) + 4) * 2.0**-24 / 2.0
EPSILON_AMX = 4.0 * 57 * 2.0**-24


def gram(
    rows: RowTable,
    center: RowTable | None = None,
    threads: int = 1,
    total: np.ndarray | None = None,
    first: int = 0,
) -> np.ndarray:
    """(n, n) fp64, symmetric; `center` is a table of one row. Row i is not finite on the diagonal if x_i is not.

    total   (n, n) fp64, symmetric, of the columns before: added to in place and returned. Tiles of columns whose widths
            are multiples of CHUNK give the bits of one pass.
    first   entries of two rows before this one are left as they are: a Gram grows as rows arrive
    """
    if total is None:
        total = np.zeros((rows.n, rows.n), np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, rows.d, CHUNK):
            stop = min(start + CHUNK, rows.d)
            tile = np.stack([to_float64(rows.columns(i, start, stop)) for i in range(rows.n)])
            if center is not None:
                tile -= to_float64(center.columns(0, start, stop))
            product = tile @ tile.T
            total[first:] += product[first:]
            total[:first, first:] += product[:first, first:]
    return total
