"""Definition of keystream_add.

    y_k = x_k + Σ_i s_i · word_k(stream of key i)   modulo 2^32

word_k is bytes 4k to 4k + 3 of the keystream (fedcore/reference/keystream.py) as a little-endian uint32;
s_i is 1 or −1. Exact and the same on every backend.
"""

from __future__ import annotations

import numpy as np

from fedcore.reference.keystream import tiles


def keystream_add(
    values: np.ndarray, keys: np.ndarray, nonce: bytes, counter: int, signs: np.ndarray, stream: str, threads: int = 1
) -> None:
    """Add to `values` (length,) uint32 in place. keys: (n, 32) uint8; signs: (n,) int8; `stream` is 'chacha20'."""
    for key, sign in zip(keys, signs, strict=True):
        for at, part in tiles(values.nbytes, key.tobytes(), nonce, counter):
            words = part.view("<u4")
            target = values[at // 4 : at // 4 + len(words)]
            if sign > 0:
                target += words
            else:
                target -= words
