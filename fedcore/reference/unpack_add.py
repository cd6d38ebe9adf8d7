"""Definition of unpack_add: t_i ← t_i + r_i modulo 2^bits, where r_i are the residues that pack_bits packed."""

from __future__ import annotations

import numpy as np

from fedcore.reference.pack_bits import TILE


def unpack_add(packed: np.ndarray, bits: int, total: np.ndarray, threads: int = 1) -> None:
    """Add the residues in `packed` (⌈m · bits / 8⌉,) uint8 to `total` (m,) uint32 or uint64, in place."""
    mask = total.dtype.type((1 << bits) - 1)
    places = np.arange(bits, dtype=total.dtype)
    for at in range(0, len(total), TILE):
        part = total[at : at + TILE]
        ones = np.unpackbits(packed[at // 8 * bits :], count=len(part) * bits, bitorder="little")
        residues = (ones.reshape(-1, bits).astype(total.dtype) << places).sum(axis=1, dtype=total.dtype)
        part[:] = (part + residues) & mask
