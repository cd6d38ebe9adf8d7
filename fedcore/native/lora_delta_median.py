"""lora_delta_median in C."""

from __future__ import annotations

import numpy as np

from fedcore.dtypes import name_of
from fedcore.factors import Factors
from fedcore.native import DTYPES, address, checked, isa_code, lib
from fedcore.native.lora_delta_sum import c_factors


def lora_delta_median(factors: Factors, coefficients: np.ndarray, out: np.ndarray, threads: int = 1) -> bool:
    """As fedcore.reference.lora_delta_median. The GIL is released while it runs."""
    struct, _alive = c_factors(factors)
    status = lib.fc_lora_delta_median(
        struct,
        address(coefficients, "const double *"),
        address(out, "void *"),
        DTYPES[name_of(out.dtype)],
        isa_code(),
        threads,
    )
    return checked(status, "lora_delta_median") == lib.FC_NOT_FINITE
