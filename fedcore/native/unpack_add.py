"""unpack_add in C."""

from __future__ import annotations

import numpy as np

from fedcore.native import address, checked, isa_code, lib


def unpack_add(packed: np.ndarray, bits: int, total: np.ndarray, threads: int = 1) -> None:
    """As fedcore.reference.unpack_add. The GIL is released while it runs."""
    status = lib.fc_unpack_add(
        address(packed, "const uint8_t *"), bits, len(total), address(total, "void *"), isa_code(), threads
    )
    checked(status, "unpack_add")
