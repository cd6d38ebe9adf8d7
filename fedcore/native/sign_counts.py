"""sign_counts in C."""

from __future__ import annotations

import numpy as np

from fedcore.native import address, c_rows, checked, isa_code, lib
from fedcore.rowtable import RowTable


def sign_counts(rows: RowTable, center: RowTable | None, out: np.ndarray, threads: int = 1) -> bool:
    """As fedcore.reference.sign_counts. The GIL is released while it runs."""
    status = lib.fc_sign_counts(c_rows(rows), c_rows(center), address(out, "int32_t *"), isa_code(), threads)
    return checked(status, "sign_counts") == lib.FC_NOT_FINITE
