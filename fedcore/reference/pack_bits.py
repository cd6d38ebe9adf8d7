"""Definition of pack_bits: residues of `bits` bits one after the other, without gaps.

Bit j of residue i is bit i · bits + j of the result, where bit n is bit n mod 8 of byte n div 8 (little-endian order).
The bits after the last residue, fewer than 8, are 0. So 8 residues take `bits` whole bytes.
"""

from __future__ import annotations

import numpy as np

#: residues that are packed at a time: whole bytes
TILE = 1 << 13


def pack_bits(residues: np.ndarray, bits: int, out: np.ndarray, threads: int = 1) -> None:
    """Pack the low `bits` bits of `residues` (m,) uint32 or uint64 into `out` (⌈m · bits / 8⌉,) uint8."""
    places = np.arange(bits, dtype=residues.dtype)
    for at in range(0, len(residues), TILE):
        ones = (residues[at : at + TILE, None] >> places & residues.dtype.type(1)).astype(np.uint8)
        packed = np.packbits(ones.ravel(), bitorder="little")
        out[at // 8 * bits : at // 8 * bits + len(packed)] = packed
