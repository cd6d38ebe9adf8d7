"""trimmed_mean in C."""

from __future__ import annotations

import numpy as np

from fedcore.dtypes import name_of
from fedcore.native import DTYPES, address, c_rows, checked, isa_code, lib
from fedcore.rowtable import RowTable


def trimmed_mean(rows: RowTable, f: int, out: np.ndarray, threads: int = 1) -> bool:
    """As fedcore.reference.trimmed_mean. The GIL is released while it runs."""
    status = lib.fc_trimmed_mean(
        c_rows(rows),
        f,
        address(out, "void *"),
        DTYPES[name_of(out.dtype)],
        isa_code(),
        threads,
    )
    return checked(status, "trimmed_mean") == lib.FC_NOT_FINITE
