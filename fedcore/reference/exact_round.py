"""Definition of exact_round: exact sums, rounded.

    y_k = round( RN64(s_k) / divisor )

RN64(s_k) is the exact sum rounded to fp64 once, to nearest even, as math.fsum does; then one division and one rounding
to the output dtype, as in weighted_sum. The value of s_k alone decides the bits. A sum of 0 is +0.
"""

from __future__ import annotations

import math

import numpy as np

from fedcore.dtypes import name_of, round_from_float64, to_float64
from fedcore.expansion import CHUNK, Expansion


def exact_round(total: Expansion, divisor: float | None, out: np.ndarray, threads: int = 1) -> bool:
    """Write the sums into `out` (d,). Returns True if any output is not finite."""
    dtype, suspect = name_of(out.dtype), False
    for chunk, start in enumerate(range(0, total.d, CHUNK)):
        stop = min(start + CHUNK, total.d)
        levels = [level[start:stop].tolist() for level in total.levels[: total.depth[chunk]]]
        values = np.array([math.fsum(column) for column in zip(*levels, strict=True)] or [0.0] * (stop - start))
        if divisor is not None:
            values = values / divisor
        out[start:stop] = rounded = round_from_float64(values, dtype)
        suspect |= not np.isfinite(to_float64(rounded)).all()
    return suspect
