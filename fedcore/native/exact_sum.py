"""exact_sum in C."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.expansion import Expansion
from fedcore.native import address, c_rows, checked, ffi, isa_code, lib
from fedcore.rowtable import RowTable


def exact_sum(total: Expansion, row: RowTable, weight: np.float32, threads: int = 1) -> bool:
    """As fedcore.reference.exact_sum. The GIL is released while it runs."""
    total.reserve()
    levels, rows = c_levels(total), c_rows(row)
    depth = address(total.depth, "uint8_t *")
    arguments = (levels, len(total.levels), depth, rows, float(weight), isa_code(), threads)
    [status] = total.count.step(lib.fc_exact_sum, *([argument] for argument in arguments))
    return checked(status, "exact_sum") == lib.FC_NOT_FINITE


def c_levels(total: Expansion) -> Any:
    """The levels as the C API takes them."""
    return ffi.new("double *[]", [address(level, "double *") for level in total.levels])
