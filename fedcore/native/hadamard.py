"""hadamard in C."""

from __future__ import annotations

import numpy as np

from fedcore.native import address, checked, isa_code, lib


def hadamard(x: np.ndarray, block: int, threads: int = 1) -> bool:
    """As fedcore.reference.hadamard. The GIL is released while it runs."""
    status = lib.fc_hadamard(address(x, "float *"), x.size, block, isa_code(), threads)
    return checked(status, "hadamard") == lib.FC_NOT_FINITE
