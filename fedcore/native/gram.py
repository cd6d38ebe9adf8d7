"""gram in C."""

from __future__ import annotations

import numpy as np

from fedcore.native import address, c_rows, checked, isa_code, lib
from fedcore.rowtable import RowTable


def gram(
    rows: RowTable,
    center: RowTable | None = None,
    threads: int = 1,
    total: np.ndarray | None = None,
    first: int = 0,
) -> np.ndarray:
    """As fedcore.reference.gram. The GIL is released while it runs."""
    out = np.zeros((rows.n, rows.n)) if total is None else total
    checked(lib.fc_gram(c_rows(rows), c_rows(center), first, address(out, "double *"), isa_code(), threads), "gram")
    return out
