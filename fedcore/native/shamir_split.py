"""shamir_split in C."""

from __future__ import annotations

import numpy as np

from fedcore.native import ffi, isa_code, lib
from fedcore.native.keystream import checked_stream


def shamir_split(secrets: np.ndarray, threshold: int, out: np.ndarray, key: bytes) -> None:
    """As fedcore.reference.shamir_split. The GIL is released while it runs."""
    status = lib.fc_shamir_split(
        ffi.from_buffer(secrets), len(secrets), threshold, len(out), ffi.from_buffer(key), ffi.from_buffer(out),
        isa_code(),
    )  # fmt: skip
    checked_stream(status, "shamir_split", "chacha20")
