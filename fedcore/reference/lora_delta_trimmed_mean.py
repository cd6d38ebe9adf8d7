"""Definition of lora_delta_trimmed_mean.

    Y = mean over clients of RN32(c_i B_i A_i) without the f least and the f greatest, element by element

As fedcore/reference/lora_delta_median.py, with the order statistic of fedcore/reference/trimmed_mean.py.
"""

from __future__ import annotations

import numpy as np

from fedcore.factors import Factors
from fedcore.reference.lora_delta_median import products
from fedcore.reference.trimmed_mean import trimmed_mean


def lora_delta_trimmed_mean(
    factors: Factors, coefficients: np.ndarray, f: int, out: np.ndarray, threads: int = 1
) -> bool:
    """Write the trimmed mean of c_i B_i A_i into `out`. True if any product or output is not finite; 0 ≤ 2f < n."""
    return trimmed_mean(products(factors, coefficients), f, out.reshape(-1))
