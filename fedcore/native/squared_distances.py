"""squared_distances in C."""

from __future__ import annotations

import numpy as np

from fedcore.native import address, c_rows, checked, ffi, isa_code, lib
from fedcore.rowtable import RowTable


def squared_distances(
    rows: RowTable,
    pairs: np.ndarray,
    threads: int = 1,
    total: np.ndarray | None = None,
    mix: np.ndarray | None = None,
) -> np.ndarray:
    """As fedcore.reference.squared_distances. The GIL is released while it runs."""
    out = np.zeros(len(pairs)) if total is None else total
    status = lib.fc_squared_distances(
        c_rows(rows),
        address(pairs, "const int64_t *"),
        len(pairs),
        ffi.NULL if mix is None else address(mix, "const double *"),
        0 if mix is None else len(mix),
        address(out, "double *"),
        isa_code(),
        threads,
    )
    checked(status, "squared_distances")
    return out
