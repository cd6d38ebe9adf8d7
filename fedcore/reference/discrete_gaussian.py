"""Definition of discrete_gaussian.

    X_n = Σ_i c_i · sign_i,n · #{k : (v_i,n, 2 w_i,n mod 2⁶⁴) < (first_k, second_k)}

with the table (first, second), the strides c and the nonces of fedcore/gaussian_table.py. For draw i of sample n, v and
w are word n, counted in 64 bits from block 0, of two streams (fedcore/reference/keystream.py). Pairs are compared as
128-bit numbers, the first word high; the sign is the top bit of w, 1 for minus.

All 64-bit words of a table are compared with every draw, so that nothing that is done or read depends on a secret.
"""

from __future__ import annotations

import numpy as np

from fedcore.gaussian_table import GaussianTable, nonce_of
from fedcore.reference.keystream import blocks

#: 64-bit words of a block of ChaCha20; samples that are made at a time
WORDS = 8
TILE = 1 << 14


def words_of(key: bytes, draw: int, word: int, start: int, count: int) -> np.ndarray:
    """Words start to start + count − 1 of a stream, for samples of these numbers: (count,) uint64."""
    first, last, found = start // WORDS, (start + count - 1) // WORDS, []
    while first <= last:
        high, low = divmod(first, 1 << 32)
        size = min(last - first + 1, (1 << 32) - low)
        found.append(blocks(key, nonce_of(draw, word, high), low, size).astype("<u4", order="C").view("<u8").ravel())
        first += size
    return np.concatenate(found)[start % WORDS :][:count]


def scan(v: np.ndarray, w: np.ndarray, table: GaussianTable) -> np.ndarray:
    """One draw at the base σ₀ from each pair of words: int64."""
    count, low = np.zeros(len(v), np.int64), w << np.uint64(1)
    for first, second in zip(table.first, table.second, strict=True):
        count += (v < first) | ((v == first) & (low < second))
    return np.where(w >> np.uint64(63), -count, count)


def discrete_gaussian(
    out: np.ndarray, table: GaussianTable, key: bytes, counter: int, stream: str, threads: int = 1
) -> None:
    """Fill `out` (size,) int64 with samples `counter` and on; `stream` is 'chacha20'."""
    for at in range(0, len(out), TILE):
        part = out[at : at + TILE]
        part[:] = 0
        for draw, stride in enumerate(table.strides):
            v, w = (words_of(key, draw, word, counter + at, len(part)) for word in (0, 1))
            part += stride * scan(v, w, table)
