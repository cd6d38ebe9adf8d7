"""Definition of median.

    y_k = round( the middle of x_1k … x_nk )

in the order of fedcore/reference/order.py. For even n the middle two are added in fp64 and halved. The one rounding is
to nearest even, straight from fp64 to the output dtype; a zero is +0.
"""

from __future__ import annotations

import numpy as np

from fedcore.reference.order import middle, order_statistic
from fedcore.rowtable import RowTable


def median(rows: RowTable, out: np.ndarray, threads: int = 1) -> bool:
    """Write the coordinate-wise median into `out` (d,). Returns True if any element or output is not finite."""
    return order_statistic(rows, out, middle)
