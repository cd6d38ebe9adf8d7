"""weighted_sum in C."""

from __future__ import annotations

import math

import numpy as np

from fedcore.dtypes import name_of
from fedcore.native import DTYPES, address, c_rows, checked, isa_code, lib
from fedcore.rowtable import RowTable


def weighted_sum(rows: RowTable, weights: np.ndarray, divisor: float | None, out: np.ndarray, threads: int = 1) -> bool:
    """As fedcore.reference.weighted_sum. The GIL is released while it runs."""
    coefficients = np.ascontiguousarray(weights, np.float32)  # held here: C sees an address alone
    status = lib.fc_weighted_sum(
        c_rows(rows),
        address(coefficients, "const float *"),
        math.nan if divisor is None else divisor,
        address(out, "void *"),
        DTYPES[name_of(out.dtype)],
        isa_code(),
        threads,
    )
    return checked(status, "weighted_sum") == lib.FC_NOT_FINITE
