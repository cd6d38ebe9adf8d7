"""squared_norms in C."""

from __future__ import annotations

import numpy as np

from fedcore.native import address, c_rows, checked, isa_code, lib
from fedcore.rowtable import RowTable


def squared_norms(
    rows: RowTable, center: RowTable | None = None, threads: int = 1, total: np.ndarray | None = None
) -> np.ndarray:
    """As fedcore.reference.squared_norms. The GIL is released while it runs."""
    out = np.zeros(rows.n) if total is None else total
    checked(
        lib.fc_squared_norms(c_rows(rows), c_rows(center), address(out, "double *"), isa_code(), threads),
        "squared_norms",
    )
    return out
