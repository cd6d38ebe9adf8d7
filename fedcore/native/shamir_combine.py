"""shamir_combine in C."""

from __future__ import annotations

import numpy as np

from fedcore.native import address, checked, isa_code, lib


def shamir_combine(points: np.ndarray, shares: np.ndarray, out: np.ndarray) -> None:
    """As fedcore.reference.shamir_combine. The GIL is released while it runs."""
    status = lib.fc_shamir_combine(
        address(points, "const uint8_t *"), address(shares, "const uint8_t *"), len(points), len(out),
        address(out, "uint8_t *"), isa_code(),
    )  # fmt: skip
    checked(status, "shamir_combine")
