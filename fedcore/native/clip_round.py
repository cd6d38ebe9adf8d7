"""clip_round in C."""

from __future__ import annotations

import numpy as np

from fedcore.native import address, c_rows, checked, ffi, isa_code, lib
from fedcore.rowtable import RowTable


def clip_round(row: RowTable, scale: float, out: np.ndarray, threads: int = 1) -> int:
    """As fedcore.reference.clip_round. The GIL is released while it runs."""
    squares = ffi.new("int64_t *")
    status = lib.fc_clip_round(c_rows(row), scale, address(out, "int32_t *"), squares, isa_code(), threads)
    checked(status, "clip_round")
    return int(squares[0])
