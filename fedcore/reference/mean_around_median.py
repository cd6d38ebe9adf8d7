"""Definition of mean_around_median.

    y_k = round( mean of the n − f elements of column k that lie closest to its median m_k )

m_k is the fp64 median, not rounded to any narrower type; closeness is |fp64(x) − m_k| in fp64. Of an element below the
median and one above it that tie the smaller is kept; on one side of it the inner ones are, though fp64 may round the
distances of an inner and an outer one to the same. In the order of fedcore/reference/order.py the kept elements are a
window of n − f neighbours: it starts where it first reaches the lower of the middle elements,
max(0, ⌊(n − 1)/2⌋ + 1 − (n − f)), and moves up by one for each s < f from there on for which element s + n − f lies
strictly closer than element s. Kept elements are added in fp64 from 0.0 in ascending order and divided by n − f in
fp64. The one rounding is to nearest even, straight from fp64 to the output dtype; a zero is +0.
"""

from __future__ import annotations

import numpy as np

from fedcore.reference.order import middle, order_statistic
from fedcore.rowtable import RowTable


def mean_around_median(rows: RowTable, f: int, out: np.ndarray, threads: int = 1) -> bool:
    """Write the mean around the median into `out` (d,); 0 ≤ f < n. Returns True if any element or output is not finite.

    Once the window's last element has reached the median, what would come in lies ever farther from it, and what would
    go ever closer, so the number of moves is the number of s that would move. Below it two equal elements would seem
    to end the moves before closer ones were met.
    """
    kept = rows.n - f
    start = max(0, (rows.n - 1) // 2 + 1 - kept)

    def statistic(columns: np.ndarray) -> np.ndarray:
        distance = np.abs(columns - middle(columns))
        first = start + (distance[start + kept :] < distance[start:f]).sum(0)
        total = np.zeros(columns.shape[1])
        for row, values in enumerate(columns):
            total += np.where((row >= first) & (row < first + kept), values, 0.0)
        return total / kept

    return order_statistic(rows, out, statistic)
