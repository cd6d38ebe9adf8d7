"""median in C."""

from __future__ import annotations

import numpy as np

from fedcore.dtypes import name_of
from fedcore.native import DTYPES, address, c_rows, checked, isa_code, lib
from fedcore.rowtable import RowTable


def median(rows: RowTable, out: np.ndarray, threads: int = 1) -> bool:
    """As fedcore.reference.median. The GIL is released while it runs."""
    status = lib.fc_median(
        c_rows(rows),
        address(out, "void *"),
        DTYPES[name_of(out.dtype)],
        isa_code(),
        threads,
    )
    return checked(status, "median") == lib.FC_NOT_FINITE
