"""Definition of discrete_gaussian.

    X_n = Σ_i c_i s_i · #{k : v_i < first_k} + c_t s_t · #{k : first_k = v_t and 2^MOST_TERMS w mod 2⁶⁴ < second_k}

with the table (first, second), the strides c and the nonces of fedcore/gaussian_table.py. For draw i of sample n, v_i
is word n, counted in 64 bits from block 0, of the draw's stream (fedcore/reference/keystream.py), and w word n of one
more stream. s_i is −1 where bit 63 − i of w is set, and 1 elsewhere. t is the last draw whose v_t is a first word: the
second part goes on to compare it as a 128-bit number. Where no draw ties in this way, there is no second part.

All words of a table are compared with every draw, so that nothing that is done or read depends on a secret.
"""

from __future__ import annotations

import numpy as np

from fedcore.gaussian_table import MOST_TERMS, GaussianTable, nonce_of
from fedcore.reference.keystream import blocks

#: 64-bit words of a block of ChaCha20; samples that are made at a time
WORDS = 8
TILE = 1 << 14


def words_of(key: bytes, draw: int, shared: int, start: int, count: int) -> np.ndarray:
    """Words start to start + count − 1 of a stream, for samples of these numbers: (count,) uint64."""
    first, last, found = start // WORDS, (start + count - 1) // WORDS, []
    while first <= last:
        high, low = divmod(first, 1 << 32)
        size = min(last - first + 1, (1 << 32) - low)
        found.append(blocks(key, nonce_of(draw, shared, high), low, size).astype("<u4", order="C").view("<u8").ravel())
        first += size
    return np.concatenate(found)[start % WORDS :][:count]


def samples(v: list[np.ndarray], w: np.ndarray, table: GaussianTable) -> np.ndarray:
    """(count,) int64 from the words of each draw and those that they share."""
    total, tied, times = np.zeros(len(w), np.int64), np.zeros_like(w), np.zeros(len(w), np.int64)
    for draw, (word, stride) in enumerate(zip(v, table.strides, strict=True)):
        count, tie = np.zeros(len(w), np.int64), np.zeros(len(w), bool)
        for first in table.first:
            count += word < first
            tie |= word == first
        signed = np.where(w >> np.uint64(63 - draw) & np.uint64(1), -stride, stride)
        total += signed * count
        tied, times = np.where(tie, word, tied), np.where(tie, signed, times)
    low = w << np.uint64(MOST_TERMS)
    for first, second in zip(table.first, table.second, strict=True):
        total += times * ((tied == first) & (low < second))
    return total


def discrete_gaussian(
    out: np.ndarray, table: GaussianTable, key: bytes, counter: int, stream: str, threads: int = 1
) -> None:
    """Fill `out` (size,) int64 with samples `counter` and on; `stream` is 'chacha20'."""
    for at in range(0, len(out), TILE):
        part = out[at : at + TILE]
        start, count = counter + at, len(part)
        v = [words_of(key, draw, 0, start, count) for draw in range(len(table.strides))]
        part[:] = samples(v, words_of(key, 0, 1, start, count), table)
