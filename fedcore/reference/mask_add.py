"""Definition of mask_add, and of unmask_sum, which is mask_add of residues.

    y_i = q_i + Σ_j s_j · word_{counter + i}(stream of key j)   modulo 2^bits

q_i     a residue or integer as it is, or of a number x_i: clamp(x_i · scale, −limit, limit) rounded to an integer, ties
        to even. The product is rounded once to fp64; limit is a whole number, so clamp and rounding commute.
word_n  bits <= 32: bytes 4n to 4n + 3 of the keystream (fedcore/reference/keystream.py) as a little-endian uint32,
        bits > 32: bytes 8n to 8n + 7 as a little-endian uint64; from block 0 on, under the nonce of zeros: a key serves
        one vector. Its low `bits` bits count, as modulo 2^bits they do by themselves.
s_j     1 or −1

Integers are exact and the same on every backend. Uniform words make y uniform, whatever q is (a one-time pad).
"""

from __future__ import annotations

import numpy as np

from fedcore.reference.keystream import BLOCK, blocks

NONCE = bytes(12)
#: elements that are masked at a time
TILE = 1 << 15


def stream_words(key: bytes, first: int, count: int, dtype: np.dtype) -> np.ndarray:
    """Words `first` to first + count − 1 of a stream: (count,) of dtype, uint32 or uint64."""
    block, skip = divmod(first * dtype.itemsize, BLOCK)
    needed = -(-(skip + count * dtype.itemsize) // BLOCK)
    data = blocks(key, NONCE, block, needed).astype("<u4", order="C").view(np.uint8).ravel()
    return data[skip : skip + count * dtype.itemsize].view(dtype.newbyteorder("<"))


def quantised(values: np.ndarray, scale: float, limit: int) -> np.ndarray:
    """q as uint64, modulo 2^64; anything for a value that is not finite."""
    if values.dtype.kind == "u":
        return values.astype(np.uint64)
    with np.errstate(over="ignore", invalid="ignore"):
        products = np.nan_to_num(np.clip(values.astype(np.float64) * scale, -limit, limit))
    return np.rint(products).astype(np.int64).view(np.uint64)


def mask_add(
    values: np.ndarray,
    out: np.ndarray,
    keys: np.ndarray,
    signs: np.ndarray,
    bits: int,
    scale: float,
    limit: int,
    counter: int,
    stream: str,
    threads: int = 1,
) -> bool:
    """Write y (d,) to `out`, which may be `values`; whether all values are finite. If not, `out` is of no use.

    values   (d,) fp32 or fp64, or uint32 or uint64, for which scale and limit have no meaning
    out      (d,) uint32 for bits <= 32, else uint64; y < 2^bits
    keys     (k, 32) uint8; signs: (k,) int8; `stream` is 'chacha20'
    """
    mask = out.dtype.type((1 << bits) - 1)
    finite = True
    for at in range(0, len(values), TILE):
        part = values[at : at + TILE]
        finite &= bool(values.dtype.kind == "u" or np.isfinite(part).all())
        total = quantised(part, scale, limit).astype(out.dtype)
        for key, sign in zip(keys, signs, strict=True):
            words = stream_words(key.tobytes(), counter + at, len(part), out.dtype)
            if sign > 0:
                total += words
            else:
                total -= words
        out[at : at + TILE] = total & mask
    return finite
