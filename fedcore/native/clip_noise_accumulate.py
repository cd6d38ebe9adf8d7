"""clip_noise_accumulate in C."""

from __future__ import annotations

import math

import numpy as np

from fedcore.dtypes import name_of
from fedcore.native import DTYPES, address, c_rows, checked, ffi, isa_code, lib
from fedcore.rowtable import RowTable


def clip_noise_accumulate(
    rows: RowTable,
    scales: np.ndarray,
    grid: float,
    noise: np.ndarray | None,
    divisor: float | None,
    out: np.ndarray,
    threads: int = 1,
) -> bool:
    """As fedcore.reference.clip_noise_accumulate. The GIL is released while it runs."""
    status = lib.fc_clip_noise_accumulate(
        c_rows(rows),
        address(scales, "const double *"),
        grid,
        ffi.NULL if noise is None else address(noise, "const int64_t *"),
        math.nan if divisor is None else divisor,
        address(out, "void *"),
        DTYPES[name_of(out.dtype)],
        isa_code(),
        threads,
    )
    return checked(status, "clip_noise_accumulate") == lib.FC_NOT_FINITE
