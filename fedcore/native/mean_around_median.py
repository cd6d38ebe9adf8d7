"""mean_around_median in C."""

from __future__ import annotations

import numpy as np

from fedcore.dtypes import name_of
from fedcore.native import DTYPES, address, c_rows, checked, isa_code, lib
from fedcore.rowtable import RowTable


def mean_around_median(rows: RowTable, f: int, out: np.ndarray, threads: int = 1) -> bool:
    """As fedcore.reference.mean_around_median. The GIL is released while it runs."""
    status = lib.fc_mean_around_median(
        c_rows(rows),
        f,
        address(out, "void *"),
        DTYPES[name_of(out.dtype)],
        isa_code(),
        threads,
    )
    return checked(status, "mean_around_median") == lib.FC_NOT_FINITE
