"""Definition of keystream: ChaCha20 with a 32-bit block counter and a 12-byte nonce (RFC 8439 section 2.3).

A block is 64 bytes. Its 16 words are four constants, the key, the counter and the nonce; twenty rounds of additions,
rotations and XORs (alternately on columns and diagonals), then the words of the start are added. All words are
little-endian uint32, all arithmetic is modulo 2^32: exact and the same on every backend.

AES-256-CTR (NIST SP 800-38A) has no definition here: a table of AES leaks the key by its timing, so it runs only where
the processor has instructions for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

CONSTANTS = np.frombuffer(b"expand 32-byte k", "<u4")
BLOCK = 64
#: blocks that are made at a time
TILE = 1 << 12
COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def _turn(x: np.ndarray, n: int) -> np.ndarray:
    return (x << np.uint32(n)) | (x >> np.uint32(32 - n))


def blocks(key: bytes, nonce: bytes, counter: int, count: int) -> np.ndarray:
    """Blocks `counter` to counter + count − 1: (count, 16) uint32."""
    start = np.empty((16, count), np.uint32)
    start[:4] = CONSTANTS[:, None]
    start[4:12] = np.frombuffer(key, "<u4")[:, None]
    start[12] = np.arange(counter, counter + count, dtype=np.uint64).astype(np.uint32)
    start[13:] = np.frombuffer(nonce, "<u4")[:, None]
    x = start.copy()
    for _ in range(10):
        for a, b, c, d in COLUMNS + DIAGONALS:
            x[a] += x[b]
            x[d] = _turn(x[d] ^ x[a], 16)
            x[c] += x[d]
            x[b] = _turn(x[b] ^ x[c], 12)
            x[a] += x[b]
            x[d] = _turn(x[d] ^ x[a], 8)
            x[c] += x[d]
            x[b] = _turn(x[b] ^ x[c], 7)
    return (x + start).T


def tiles(size: int, key: bytes, nonce: bytes, counter: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first byte, bytes from there on) of a stream of `size` bytes, in order."""
    for at in range(0, size, TILE * BLOCK):
        count = min(TILE, -(-(size - at) // BLOCK))
        stream = blocks(key, nonce, counter + at // BLOCK, count).astype("<u4", order="C").view(np.uint8).ravel()
        yield at, stream[: size - at]


def keystream(out: np.ndarray, key: bytes, nonce: bytes, counter: int, stream: str, threads: int = 1) -> None:
    """Fill `out` (size,) uint8 with the stream from block `counter` on; `stream` is 'chacha20'."""
    for at, part in tiles(len(out), key, nonce, counter):
        out[at : at + len(part)] = part
