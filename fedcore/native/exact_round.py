"""exact_round in C."""

from __future__ import annotations

import math

import numpy as np

from fedcore.dtypes import name_of
from fedcore.expansion import Expansion
from fedcore.native import DTYPES, address, checked, ffi, isa_code, lib
from fedcore.native.exact_sum import c_levels


def exact_round(total: Expansion, divisor: float | None, out: np.ndarray, threads: int = 1) -> bool:
    """As fedcore.reference.exact_round. The GIL is released while it runs."""
    levels = c_levels(total)  # kept alive: a cast does not own what it points to
    status = lib.fc_exact_round(
        ffi.cast("const double *const *", levels),
        address(total.depth, "const uint8_t *"),
        total.d,
        math.nan if divisor is None else divisor,
        address(out, "void *"),
        DTYPES[name_of(out.dtype)],
        isa_code(),
        threads,
    )
    return checked(status, "exact_round") == lib.FC_NOT_FINITE
