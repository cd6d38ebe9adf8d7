"""lora_blocks in C."""

from __future__ import annotations

import numpy as np

from fedcore.factors import Factors
from fedcore.native import address, checked, isa_code, lib
from fedcore.native.lora_delta_sum import c_factors


def lora_blocks(factors: Factors, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """As fedcore.reference.lora_blocks. The GIL is released while it runs."""
    struct, _alive = c_factors(factors)
    terms = int(factors.ranks.sum())
    gram_b, gram_a = np.empty((terms, terms)), np.empty((terms, terms))
    status = lib.fc_lora_blocks(struct, address(gram_b, "double *"), address(gram_a, "double *"), isa_code(), threads)
    checked(status, "lora_blocks")
    return gram_b, gram_a
