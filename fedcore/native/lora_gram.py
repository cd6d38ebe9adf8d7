"""lora_gram in C."""

from __future__ import annotations

import numpy as np

from fedcore.factors import Factors
from fedcore.native import address, checked, isa_code, lib
from fedcore.native.lora_delta_sum import c_factors


def lora_gram(factors: Factors, scales: np.ndarray, total: np.ndarray, threads: int = 1) -> None:
    """As fedcore.reference.lora_gram. The GIL is released while it runs."""
    struct, _alive = c_factors(factors)
    status = lib.fc_lora_gram(
        struct, address(scales, "const double *"), address(total, "double *"), isa_code(), threads
    )
    checked(status, "lora_gram")
