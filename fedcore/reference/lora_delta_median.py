"""Definition of lora_delta_median.

    Y = median over clients i of RN32(c_i B_i A_i), element by element

Each client's product is what lora_delta_sum gives in fp32 for that client alone; the median, with its order of
elements, its fp64 halving and its one rounding, is that of fedcore/reference/median.py. A client with c_i = 0 or rank 0
counts as zeros. Same bits here and in C. The reference forms all products; compiled backends hold a tile of them.
"""

from __future__ import annotations

import numpy as np

from fedcore.factors import Factors
from fedcore.reference.lora_delta_sum import lora_delta_sum
from fedcore.reference.median import median
from fedcore.rowtable import RowTable


def lora_delta_median(factors: Factors, coefficients: np.ndarray, out: np.ndarray, threads: int = 1) -> bool:
    """Write the median of c_i B_i A_i into `out` (d_out, d_in). True if any product or output is not finite."""
    return median(products(factors, coefficients), out.reshape(-1))


def products(factors: Factors, coefficients: np.ndarray) -> RowTable:
    """The clients' dense products in fp32, as n rows of d_out · d_in columns."""
    rows = []
    for i in range(factors.n):
        rows.append(np.empty((factors.d_out, factors.d_in), np.float32))
        alone = Factors(factors.b[i : i + 1], factors.a[i : i + 1])
        lora_delta_sum(alone, coefficients[i : i + 1], None, rows[-1])
    return RowTable.from_arrays([row.reshape(-1) for row in rows])
