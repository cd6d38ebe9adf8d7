"""Definition of discrete_gaussian.

    X_n = Σ_i c_i s_i · #{k : u_i < entry_k},    u_i = v_i + w_i / 2¹²⁸,    entry_k = first_k / 2 + rest_k / 2¹²⁸

with the table (first, rest) and the strides c of fedcore/gaussian_table.py. For draw i of sample n, word n of the
draw's stream (fedcore/reference/keystream.py), counted in 32 bits from cipher block 0, is 2 v_i + 1 where s_i is −1 and
2 v_i where it is 1. w_i is read only where v_i is the first word of an entry, a tie: BLOCK samples, from a multiple of
it on, have TIES words of 128 bits in one more stream, and their ties, in the order of n, then i, take one each. Ties
beyond that are as if their w_i were the largest; kernels may take others for the first, since the distance of a table
counts blocks with so many.

All first words are compared with every draw, so that nothing that is done or read depends on a secret but for ties.
"""

from __future__ import annotations

import numpy as np

from fedcore.gaussian_table import BLOCK, TIES, GaussianTable, nonce_of
from fedcore.reference.keystream import blocks

#: 32-bit words of a cipher block of ChaCha20; blocks of samples that are made at a time
WORDS = 16
TILE = 8


def words_of(key: bytes, draw: int, tie: int, start: int, count: int) -> np.ndarray:
    """Words start to start + count − 1 of a stream: (count,) uint32."""
    first, last, found = start // WORDS, (start + count - 1) // WORDS, []
    while first <= last:
        high, low = divmod(first, 1 << 32)
        size = min(last - first + 1, (1 << 32) - low)
        found.append(blocks(key, nonce_of(draw, tie, high), low, size).astype("<u4", order="C").ravel())
        first += size
    return np.concatenate(found)[start % WORDS :][:count]


def samples(v: np.ndarray, w: np.ndarray, table: GaussianTable) -> np.ndarray:
    """(BLOCK,) int64 from the words of each draw, (draws, BLOCK) uint32, and those of ties, (TIES, 2) uint64."""
    count, tied = np.zeros(v.shape, np.int64), np.zeros(v.shape, bool)
    for first in table.first:
        count += v & ~np.uint32(1) < first
        tied |= v & ~np.uint32(1) == first
    signed = np.where(v & 1, -table.strides[:, None], table.strides[:, None])
    total = (signed * count).sum(0)
    for (n, draw), (high, low) in zip(np.argwhere(tied.T), w, strict=False):
        less = (high < table.rest[:, 0]) | ((high == table.rest[:, 0]) & (low < table.rest[:, 1]))
        total[n] += signed[draw, n] * np.count_nonzero(less & (table.first == v[draw, n] & ~np.uint32(1)))
    return total


def discrete_gaussian(
    out: np.ndarray, table: GaussianTable, key: bytes, counter: int, stream: str, threads: int = 1
) -> None:
    """Fill `out` (size,) int64 with samples `counter` and on; `stream` is 'chacha20'."""
    stop, draws = counter + len(out), range(len(table.strides))
    for start in range(counter // BLOCK, -(-stop // BLOCK) if len(out) else 0, TILE):
        count = min(TILE, -(-stop // BLOCK) - start)
        v = np.array([words_of(key, draw, 0, start * BLOCK, count * BLOCK) for draw in draws])
        w = words_of(key, 0, 1, start * TIES * 4, count * TIES * 4).view("<u8").reshape(count, TIES, 2)
        each = [samples(v[:, k * BLOCK : (k + 1) * BLOCK], w[k], table) for k in range(count)]
        drawn, at = np.concatenate(each), start * BLOCK - counter
        out[max(at, 0) : at + len(drawn)] = drawn[max(-at, 0) :][: len(out) - max(at, 0)]
