"""Definition of exact_sum: a weighted row added to sums that are never rounded.

    s_k ← s_k + fp64(w) · fp64(x_k), exactly

w is an fp32 number and x_k has at most 24 significant bits, so the product is exact in fp64. A sum is held as several
fp64 numbers (fedcore/expansion.py); each takes the addition by an error-free transformation (Knuth's TwoSum, a + b =
s + e with s = RN(a + b); The Art of Computer Programming, volume 2, 4.2.2, theorem B), and e goes on to the next.
Products are multiples of 2⁻²⁹⁸ below 2²⁵⁶, so nothing overflows or vanishes on the way. What the levels hold depends on
the order of the rows; their sum does not.
"""

from __future__ import annotations

from itertools import repeat
from operator import setitem

import numpy as np

from fedcore.dtypes import to_float64
from fedcore.expansion import CHUNK, Expansion
from fedcore.rowtable import RowTable


def exact_sum(total: Expansion, row: RowTable, weight: np.float32, threads: int = 1) -> bool:
    """Add weight · row, a table of one row, to `total`. True if the row is not finite: nothing has been added then."""
    total.reserve()
    starts = range(0, total.d, CHUNK)
    if not all(np.isfinite(to_float64(row.columns(0, s, min(s + CHUNK, total.d)))).all() for s in starts):
        return True
    columns: list[np.ndarray] = []
    sums: list[np.ndarray] = []
    for chunk, start in enumerate(starts):
        stop, depth = min(start + CHUNK, total.d), int(total.depth[chunk])
        rest = np.float64(weight) * to_float64(row.columns(0, start, stop))
        for level in total.levels[:depth]:
            old = level[start:stop]
            columns.append(old)
            sums.append(s := old + rest)
            part = s - old
            rest = (old - (s - part)) + (rest - part)
        if rest.any():
            columns += [total.levels[depth][start:stop], total.depth[chunk : chunk + 1]]
            sums += [rest, np.array([depth + 1], np.uint8)]
    # all of it in one step, which is a row also where it changes nothing
    nothing = np.empty(0)
    total.count.step(setitem, [nothing, *columns], repeat(slice(None)), [nothing, *sums])
    return False
