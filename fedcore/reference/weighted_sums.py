"""Definition of weighted_sums: several weighted sums of the same rows, from one read of them.

    y_ak = round( (Σ_i fp64(w_ai) · fp64(x_ik)) / divisor_a ),   i in row order, from 0.0

Row a of the result has the bits of weighted_sum with the weights w_a, for finite rows. Weights of 0 add a zero there;
a row counts as read where any of its weights is not 0.
"""

from __future__ import annotations

import numpy as np

from fedcore.reference.weighted_sum import weighted_sum
from fedcore.rowtable import RowTable


def weighted_sums(
    rows: RowTable, weights: np.ndarray, divisors: np.ndarray | None, out: np.ndarray, threads: int = 1
) -> bool:
    """Write m sums into `out` (m, d); weights (m, n) fp32, divisors (m,) fp64. True if any output is not finite."""
    suspect = False
    for a, row in enumerate(weights):
        suspect |= weighted_sum(rows, row, None if divisors is None else float(divisors[a]), out[a])
    return suspect
