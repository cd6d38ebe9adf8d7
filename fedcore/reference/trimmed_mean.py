"""Definition of trimmed_mean.

    y_k = round( (x_(f+1)k + … + x_(n−f)k) / (n − 2f) )

with x_(1)k ≤ … ≤ x_(n)k in the order of fedcore/reference/order.py: the f smallest and the f largest of each column are
dropped, the kept ones are added in fp64 from 0.0 in ascending order and divided by n − 2f in fp64. The one rounding is
to nearest even, straight from fp64 to the output dtype; a zero is +0. Nothing that was dropped ever enters a sum.
"""

from __future__ import annotations

import numpy as np

from fedcore.reference.order import ascending_sum, order_statistic
from fedcore.rowtable import RowTable


def trimmed_mean(rows: RowTable, f: int, out: np.ndarray, threads: int = 1) -> bool:
    """Write the trimmed mean into `out` (d,); 0 ≤ 2f < n. Returns True if any element or output is not finite."""
    kept = rows.n - 2 * f
    return order_statistic(rows, out, lambda columns: ascending_sum(columns[f : f + kept]) / kept)
