"""pack_bits in C."""

from __future__ import annotations

import numpy as np

from fedcore.native import address, checked, isa_code, lib


def pack_bits(residues: np.ndarray, bits: int, out: np.ndarray, threads: int = 1) -> None:
    """As fedcore.reference.pack_bits. The GIL is released while it runs."""
    status = lib.fc_pack_bits(
        address(residues, "const void *"), bits, len(residues), address(out, "uint8_t *"), isa_code(), threads
    )
    checked(status, "pack_bits")
