"""lora_delta_sum in C."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedcore.dtypes import name_of
from fedcore.factors import Factors
from fedcore.native import DTYPES, address, checked, ffi, isa_code, lib


def lora_delta_sum(
    factors: Factors, coefficients: np.ndarray, base: np.ndarray | None, out: np.ndarray, threads: int = 1
) -> bool:
    """As fedcore.reference.lora_delta_sum. The GIL is released while it runs."""
    struct, _alive = c_factors(factors)
    status = lib.fc_lora_delta_sum(
        struct,
        address(coefficients, "const double *"),
        ffi.NULL if base is None else address(base, "const void *"),
        DTYPES["float32" if base is None else name_of(base.dtype)],
        address(out, "void *"),
        DTYPES[name_of(out.dtype)],
        isa_code(),
        threads,
    )
    return checked(status, "lora_delta_sum") == lib.FC_NOT_FINITE


def c_factors(factors: Factors) -> tuple[Any, Any]:
    """(the fc_factors of a table, what it points to beside the table's arrays: to be kept alive)."""
    struct = ffi.new("fc_factors *")
    dtypes = [np.array([DTYPES[name] for name in side], np.uint8) for side in factors.dtypes]
    struct.b, struct.a = (address(pointers, "const void *const *") for pointers in factors.pointers)
    struct.b_dtypes, struct.a_dtypes = (address(codes, "const uint8_t *") for codes in dtypes)
    struct.ranks = address(factors.ranks, "const int64_t *")
    struct.clients, struct.d_out, struct.d_in = factors.n, factors.d_out, factors.d_in
    return struct, dtypes
