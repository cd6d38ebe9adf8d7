"""weighted_sums in C."""

from __future__ import annotations

import numpy as np

from fedcore.dtypes import name_of
from fedcore.native import DTYPES, address, c_rows, checked, ffi, isa_code, lib
from fedcore.rowtable import RowTable


def weighted_sums(
    rows: RowTable, weights: np.ndarray, divisors: np.ndarray | None, out: np.ndarray, threads: int = 1
) -> bool:
    """As fedcore.reference.weighted_sums. The GIL is released while it runs."""
    weights = np.ascontiguousarray(weights, np.float32)
    by = None if divisors is None else np.ascontiguousarray(divisors, np.float64)
    status = lib.fc_weighted_sums(
        c_rows(rows),
        address(weights, "const float *"),
        len(weights),
        ffi.NULL if by is None else address(by, "const double *"),
        address(out, "void *"),
        DTYPES[name_of(out.dtype)],
        isa_code(),
        threads,
    )
    return checked(status, "weighted_sums") == lib.FC_NOT_FINITE
