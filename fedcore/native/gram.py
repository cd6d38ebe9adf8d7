"""gram in C."""

from __future__ import annotations

import numpy as np

from fedcore.errors import ShapeError
from fedcore.native import address, c_rows, checked, isa_code, lib, running
from fedcore.rowtable import RowTable


def gram(
    rows: RowTable,
    center: RowTable | None = None,
    threads: int = 1,
    total: np.ndarray | None = None,
    first: int = 0,
) -> np.ndarray:
    """As fedcore.reference.gram. The GIL is released while it runs."""
    if not 0 <= first <= rows.n:
        raise ShapeError(f"first: got {first}, expected a row number, 0 to {rows.n}")
    out = running(total, (rows.n, rows.n))
    checked(lib.fc_gram(c_rows(rows), c_rows(center), first, address(out, "double *"), isa_code(), threads), "gram")
    return out
